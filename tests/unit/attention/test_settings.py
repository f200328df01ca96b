"""Settings: what does not fit is refused by the variable's name."""

from pathlib import Path

import pytest

from services.attention.settings import PREFIX, AttentionSettings
from understudy.serving import SettingsError

NEEDED = {f"{PREFIX}MODEL": "smollm2", f"{PREFIX}MODEL_NAME": "smollm2-135m-instruct"}


def test_adapters_are_read_by_name():
    environ = {**NEEDED, f"{PREFIX}ADAPTERS": "tools=/a/b.safetensors, other=c"}
    settings = AttentionSettings.from_env(environ)
    assert settings.adapter_paths() == {"tools": Path("/a/b.safetensors"), "other": Path("c")}


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("TOKEN_BUDGET", "0", "TOKEN_BUDGET is 0; the least is 1"),
        ("BATCH_SHARE", "0", "BATCH_SHARE is 0; it is above 0 and at most 1"),
        ("BATCH_SHARE", "nan", "BATCH_SHARE is nan"),
        ("KVSTORE_TIMEOUT_S", "nan", "KVSTORE_TIMEOUT_S is nan"),
        ("FFN", "remote", "PLACEMENT must name the controller"),
        ("FFN", "elsewhere", "FFN is 'elsewhere'"),
        ("ADAPTERS", "tools", "'tools'; write each as name=path"),
        ("ADAPTERS", "a=b,a=c", "'a=c'; write each as name=path, once"),
        ("TOKENS", "7", "UNDERSTUDY_ATTENTION_TOKENS is not a setting"),
    ],
)
def test_bad_setting_is_named(variable: str, value: str, sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        AttentionSettings.from_env({**NEEDED, f"{PREFIX}{variable}": value})


def test_model_is_required():
    with pytest.raises(SettingsError, match="UNDERSTUDY_ATTENTION_MODEL is not set"):
        AttentionSettings.from_env({})
