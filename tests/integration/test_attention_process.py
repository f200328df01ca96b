"""The attention worker as a process: drains on SIGTERM, and says why it cannot start."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.contract.attention.parts import greedy, write_model
from tests.integration.processes import (
    START_TIMEOUT_S,
    Processes,
    run_session,
    submit_of,
    wait_until,
)
from understudy.local.processes import child_environment

NUM_TOKENS = 300


def test_running_sequence_outlives_sigterm_and_the_process_ends_well(
    processes: Processes, tmp_path: Path
):
    loaded = write_model(tmp_path / "tiny")
    worker = processes.start("attention", model=str(tmp_path / "tiny"), model_name="tiny")
    is_told = threading.Event()

    def stop(num_tokens: int) -> None:
        if not is_told.is_set():
            is_told.set()
            worker.child.terminate()

    outcome = run_session(worker.address, [submit_of(1, [65, 66], NUM_TOKENS)], stop)[1]
    assert outcome.failed in ("", "This attention worker drained before the sequence had ended.")
    assert outcome.tokens == greedy(loaded, [65, 66], len(outcome.tokens))
    wait_until(lambda: worker.child.exit_code() is not None, "the worker to end")
    assert worker.child.exit_code() == 0


@pytest.mark.parametrize(
    ("environ", "code", "sentence"),
    [
        ({"MODEL_NAME": "tiny"}, 2, "UNDERSTUDY_ATTENTION_MODEL is not set"),
        ({"MODEL_NAME": "tiny", "MODEL": "/nowhere"}, 1, "no model at /nowhere"),
    ],
)
def test_worker_that_cannot_start_says_why(environ: dict[str, str], code: int, sentence: str):
    settings = {f"UNDERSTUDY_ATTENTION_{name}": value for name, value in environ.items()}
    ended = subprocess.run(
        [sys.executable, "-m", "services.attention"],
        env=child_environment(os.environ) | settings,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == code
    assert sentence in ended.stderr
