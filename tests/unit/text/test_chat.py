"""The template equals the model's own, and unusable conversations are refused."""

import gguf
import jinja2
import pytest

from understudy.errors import InvalidArgument
from understudy.text.chat import Message, render
from understudy.text.tokenizer import prompt_text

CONVERSATIONS = [
    [Message("user", "Hello there")],
    [Message("system", "Be brief."), Message("user", "Hi")],
    [Message("user", "One"), Message("assistant", "Two"), Message("user", "Three <|im_end|>")],
]


def test_rendering_equals_the_template_in_the_weights(gguf_path) -> None:  # type: ignore[no-untyped-def]
    source = str(gguf.GGUFReader(gguf_path).fields["tokenizer.chat_template"].contents())
    template = jinja2.Environment(autoescape=False).from_string(source)
    for messages in CONVERSATIONS:
        expected = template.render(
            messages=[{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=True,
        )
        assert prompt_text(render(messages)) == expected


def test_caller_text_is_never_special() -> None:
    special = {segment.text for segment in render(CONVERSATIONS[2]) if segment.is_special}
    assert special == {"<|im_start|>", "<|im_end|>"}


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no messages"):
        render([])


def test_an_unknown_role_is_refused_by_place() -> None:
    with pytest.raises(InvalidArgument, match="Message 1 has the role 'robot'") as caught:
        render([Message("user", "Hi"), Message("robot", "Hi")])
    assert caught.value.metadata["field"] == "messages[1].role"


def test_an_empty_last_message_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="last message is empty"):
        render([Message("user", " \n")])
