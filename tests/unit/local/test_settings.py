"""Settings of the local runner."""

from dataclasses import replace
from pathlib import Path

import pytest

from understudy.local.settings import LocalSettings
from understudy.serving import SettingsError


def test_defaults_are_the_documented_ports() -> None:
    settings = LocalSettings.from_env({})
    assert (settings.http_port, settings.grpc_port) == (8080, 9090)
    assert settings.slm is None


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = replace(
        LocalSettings(),
        run_dir=Path("/somewhere"),
        http_port=0,
        llm_adapters=("a=/x", "b=/y"),
        slm=Path("/slm"),
    )
    assert LocalSettings.from_env(settings.to_env()) == settings
    assert LocalSettings.from_env(LocalSettings().to_env()) == LocalSettings()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("UNDERSTUDY_LOCAL_HTTP_PORT", "70000", "HTTP_PORT is 70000"),
        ("UNDERSTUDY_LOCAL_GRPC_PORT", "8080", "set two ports"),
        ("UNDERSTUDY_LOCAL_STOP_TIMEOUT_S", "0", "STOP_TIMEOUT_S is 0"),
        ("UNDERSTUDY_LOCAL_HTPP_PORT", "1", "UNDERSTUDY_LOCAL_HTPP_PORT is not a setting"),
        ("UNDERSTUDY_LOCAL_GRPC_PORT", "many", "whole number"),
        ("UNDERSTUDY_LOCAL_LLM_POOL", "{", "LLM_POOL is no JSON"),
        ("UNDERSTUDY_LOCAL_LLM_POOL", "[]", "LLM_POOL is no JSON object"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        LocalSettings.from_env({variable: value})


def test_triton_has_nothing_to_compute_for_an_external_llm() -> None:
    with pytest.raises(SettingsError, match="TRITON"):
        LocalSettings(llm_pool="{}", triton=True)
