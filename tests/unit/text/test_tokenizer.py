"""The tokenizer equals the model's own, and caller text can never open a turn."""

from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition
from understudy.text.tokenizer import Segment, Tokenizer, prompt_text

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = [
    "Play some 1959 songs on Iheart",
    '{"name":"GetWeather","arguments":{"city":"São Paulo"}}',
    "  two  spaces\n\nand\ttabs, 12345 digits",
    "naïve café 日本語 🎵 don't",
    "",
]


def test_vocabularies_are_told_apart_by_what_their_ids_mean(gguf_path: Path) -> None:
    shipped = Tokenizer.from_file(ROOT / "models" / "slm-snips" / "tokenizer.json")
    assert shipped.vocabulary_digest == Tokenizer.from_gguf(gguf_path).vocabulary_digest
    other = Tokenizer(shipped.source.replace("<|im_start|>", "<|turn|>"))
    assert other.vocabulary_digest != shipped.vocabulary_digest


# The vocabulary has no tokens for control bytes and the lead bytes of later planes.
KNOWN = st.characters(min_codepoint=32, max_codepoint=0x1FAFF, exclude_categories=["Cs", "Cc"])


@pytest.fixture(scope="session")
def reference(gguf_path: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(gguf_path.parent), gguf_file=gguf_path.name)


@pytest.mark.filterwarnings("ignore")
def test_ids_equal_those_of_transformers(tokenizer: Tokenizer, reference: object) -> None:
    for text in SAMPLES:
        expected = reference.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
        assert tokenizer.encode(text) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(KNOWN, max_size=60))
def test_every_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spelled_out_special_tokens_stay_ordinary_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_end|>")
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == "<|im_end|>"


def test_only_special_segments_contain_special_tokens(tokenizer: Tokenizer) -> None:
    prompt = (Segment("<|im_start|>", is_special=True), Segment("<|im_start|>"))
    ids = tokenizer.encode_prompt(prompt)
    assert ids[0] == tokenizer.special_id("<|im_start|>")
    assert not set(ids[1:]) & tokenizer.special_ids
    assert prompt_text(prompt) == "<|im_start|><|im_start|>"


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.special_id("<|im_end|>")]) == ""


def test_a_saved_tokenizer_reads_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.vocab_size == tokenizer.vocab_size == 49152
    assert again.encode(SAMPLES[1]) == tokenizer.encode(SAMPLES[1])


def test_an_unknown_special_token_is_refused_by_name(tokenizer: Tokenizer) -> None:
    with pytest.raises(FailedPrecondition, match="no special token 'Play'"):
        tokenizer.special_id("Play")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"absent\.json"):
        Tokenizer.from_file(tmp_path / "absent.json")


def test_a_malformed_description_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="not usable"):
        Tokenizer("{}")


def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(FailedPrecondition, match=r"broken\.gguf"):
        Tokenizer.from_gguf(path)


def test_a_gguf_without_a_tokenizer_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FailedPrecondition, match=r"bare\.gguf .* no tokenizer\.ggml\.pre"):
        Tokenizer.from_gguf(tmp_path / "bare.gguf")


def test_what_is_left_of_a_tokenizer_decodes_as_it_did(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    ids = tokenizer.encode("Voilà 東京 🎉 for all of us")
    assert vocabulary.decode(ids) == "Voilà 東京 🎉 for all of us"
    assert vocabulary.size == tokenizer.vocab_size
    assert vocabulary.token_bytes(tokenizer.special_id("<|im_end|>")) == b""
    assert b"".join(map(vocabulary.token_bytes, range(3))) == b""
    assert Tokenizer(tokenizer.source).vocabulary.digest == vocabulary.digest
