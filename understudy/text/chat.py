"""The ChatML template of SmolLM2, in plain Python.

Equal to the model's own Jinja template (a test compares them through transformers), without
running template code that a weight file brings along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.errors import InvalidArgument
from understudy.text.tokenizer import Prompt, Segment

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLES = frozenset({"system", "user", "assistant", "tool"})

_START = Segment("<|im_start|>", is_special=True)
_END = Segment("<|im_end|>", is_special=True)
_NEWLINE = Segment("\n")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: str


def turn(message: Message) -> Prompt:
    """Render one closed turn."""
    return (_START, Segment(f"{message.role}\n{message.content}"), _END, _NEWLINE)


def opening(role: str = "assistant") -> Prompt:
    """Render the header after which the model writes."""
    return (_START, Segment(f"{role}\n"))


def render(messages: Sequence[Message]) -> Prompt:
    """Render a conversation, with the default system turn where the caller gave none.

    Raises InvalidArgument for an empty conversation, an unknown role or an empty last turn.
    """
    check(messages)
    system = () if messages[0].role == "system" else turn(Message("system", DEFAULT_SYSTEM))
    turns = (segment for message in messages for segment in turn(message))
    return (*system, *turns, *opening())


def check(messages: Sequence[Message]) -> None:
    """Refuse conversations no template can render, naming what is wrong."""
    if not messages:
        raise InvalidArgument("The request has no messages.", {"field": "messages"})
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidArgument(
                f"Message {index} has the role {message.role!r}; known roles are {sorted(ROLES)}.",
                {"field": f"messages[{index}].role"},
            )
    if not messages[-1].content.strip():
        raise InvalidArgument(
            "The last message is empty.", {"field": f"messages[{len(messages) - 1}].content"}
        )
