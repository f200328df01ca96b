"""Settings of the executor."""

import pytest

from services.experts.settings import ExpertsSettings
from understudy.serving import SettingsError

MODEL = {"UNDERSTUDY_EXPERTS_MODEL": "m.gguf"}


def read(**variables: str) -> ExpertsSettings:
    ours = {f"UNDERSTUDY_EXPERTS_{name}": value for name, value in variables.items()}
    return ExpertsSettings.from_env(MODEL | ours)


def test_the_worker_computes_itself_unless_told_otherwise():
    assert read().executor == "in_process"
    assert read().is_ready_alone


def test_with_triton_and_a_replica_as_fallback_it_is_not_ready_alone():
    assert read(EXECUTOR="triton", TRITON="127.0.0.1:8001").is_ready_alone
    chosen = read(EXECUTOR="triton", TRITON="127.0.0.1:8001", TRITON_FALLBACK="replica")
    assert not chosen.is_ready_alone


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"EXECUTOR": "triton"}, "TRITON is empty"),
        ({"EXECUTOR": "cuda"}, "in_process, triton"),
        ({"TRITON_MIN_TOKENS": "0"}, "TRITON_MIN_TOKENS is 0"),
        ({"TRITON_MIN_TOKENS": "2", "TRITON_FALLBACK": "replica"}, "1 where the fallback"),
        ({"TRITON_TIMEOUT_S": "0"}, "TRITON_TIMEOUT_S is 0"),
        ({"TRITON_TIMEOUT_S": "nan"}, "TRITON_TIMEOUT_S is nan"),
        ({"TRITON_FALLBACK": "none"}, "in_process, replica"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(variables, words):
    with pytest.raises(SettingsError, match=words):
        read(**variables)
