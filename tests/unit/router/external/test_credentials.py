"""Keys of engines: one line that fits a header, or a refusal that never shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.router.external.credentials import MAX_KEY_BYTES, follow_authorities, read_key
from services.router.external.port import EngineMisfit
from understudy.serving import SettingsError


def test_a_key_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n", encoding="ascii")
    assert read_key(tmp_path / "key") == "sk-1"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"se cret", b"secret\nsecret", b"secret\x00", b"secret\xff", b"s" * 5000],
)
def test_what_is_no_key_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(EngineMisfit, match=str(tmp_path / "key")) as caught:
        read_key(tmp_path / "key")
    assert b"secret" not in str(caught.value).encode()
    assert caught.value.__cause__ is None
    assert MAX_KEY_BYTES < 5000


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_without_certificates_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match="UNDERSTUDY_ROUTER_POOLS: the ca_file") as caught:
        follow_authorities(file, "llm")
    assert str(file) in caught.value.message
