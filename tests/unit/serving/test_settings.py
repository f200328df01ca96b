"""Settings from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from understudy.serving import (
    ServingSettings,
    SettingsError,
    parse_address,
    read_settings,
    text_or_file,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """One field of each kind."""

    name: str
    count: int = 3
    ratio: float = 0.5
    is_on: bool = False
    folder: Path = Path("here")
    peers: tuple[str, ...] = ()
    mode: Literal["fused", "remote"] = "fused"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


def read(**environ: str) -> Settings:
    prefixed: Mapping[str, str] = {f"UNDERSTUDY_T_{key}": value for key, value in environ.items()}
    return read_settings(Settings, "UNDERSTUDY_T_", {"HOME": "/", **prefixed})


def test_every_type_is_converted():
    settings = read(
        NAME=" x ",
        COUNT="7",
        RATIO="0.25",
        IS_ON="Yes",
        FOLDER="/a/b",
        PEERS="a:1, b:2,",
        MODE="remote",
        LIMIT="9",
    )

    assert settings == Settings("x", 7, 0.25, True, Path("/a/b"), ("a:1", "b:2"), "remote", 9)


def test_absent_variables_leave_defaults():
    assert read(NAME="x") == Settings("x")


def test_empty_optional_is_none():
    assert read(NAME="x", LIMIT="").limit is None


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("COUNT", "many", "set a whole number"),
        ("RATIO", "half", "set a number"),
        ("IS_ON", "maybe", "set true or false"),
        ("MODE", "sideways", "set one of fused, remote"),
        ("LIMIT", "none", "set a whole number"),
    ],
)
def test_bad_value_is_named_with_its_remedy(variable, value, remedy):
    with pytest.raises(SettingsError) as caught:
        read(NAME="x", **{variable: value})

    assert f"UNDERSTUDY_T_{variable} is '{value}'; {remedy}" in caught.value.message


def test_missing_variable_is_named():
    with pytest.raises(SettingsError, match="UNDERSTUDY_T_NAME is not set"):
        read()


def test_unknown_variable_is_named_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"UNDERSTUDY_T_NMAE is not.*Known: .*_NAME"):
        read(NAME="x", NMAE="y")


def test_value_refused_by_the_settings_themselves_is_a_settings_error():
    with pytest.raises(SettingsError, match="count is negative"):
        read(NAME="x", COUNT="-1")


def test_text_or_file_reads_the_file_behind_an_at_sign(tmp_path):
    path = tmp_path / "pools.json"
    path.write_text("[é]", encoding="utf-8")

    assert text_or_file(f"@{path}") == "[é]"
    assert text_or_file("[1]") == "[1]"


def test_unreadable_files_are_named(tmp_path):
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff\xfe\xff")
    large.write_bytes(b"x" * (1024 * 1024 + 1))

    for path, why in [
        (tmp_path / "absent", "cannot be read"),
        (binary, "not UTF-8"),
        (large, "la"),
    ]:
        with pytest.raises(SettingsError, match=f"{path.name}.*{why}"):
            text_or_file(f"@{path}")


def test_addresses_are_parsed():
    assert parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:x", "host:70000", "::1:80"])
def test_malformed_addresses_are_refused(address):
    with pytest.raises(SettingsError, match="host:port"):
        parse_address(address)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRACE_SAMPLE_RATIO", "1.5"),
        ("DRAIN_GRACE_S", "-1"),
        ("MAX_CALL_S", "nan"),
        ("MAX_CONCURRENT_CALLS", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_serving_settings_refuse_values_out_of_range(variable, value):
    with pytest.raises(SettingsError, match=f"UNDERSTUDY_SERVING_{variable}"):
        ServingSettings.from_env({f"UNDERSTUDY_SERVING_{variable}": value})


def test_serving_settings_listen_on_loopback_unless_told():
    settings = ServingSettings.from_env({})

    assert settings.listen == "127.0.0.1:0"
    assert settings.metrics_listen == ""
