"""Settings of the Job, and its command line as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.weights.conftest import FILES, FOLDER, sums
from tests.unit.weights.store_server import StoreServer
from understudy.serving import SettingsError
from understudy.weights.settings import FetchSettings
from understudy.weights.store import RECORD, Store

ENTRY = {"folder": FOLDER, "source": "s3://b/k/", "sums": sums(FILES), "max_bytes": 100_000}
COMMAND = (sys.executable, "-m", "understudy.weights")


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("[", "not JSON"),
        ([], "list 1 to"),
        ([{**ENTRY, "digest": "sha256:0"}], "either digest or sums"),
        ([{**ENTRY, "sums": ""}], "either digest or sums"),
        ([{**ENTRY, "folder": "../x"}], "does not name a folder"),
        ([{**ENTRY, "max_bytes": 0}], "not positive"),
        ([{**ENTRY, "max_bytes": True}], "wrong type"),
        ([{**ENTRY, "sauce": "x"}], "'sauce' is unknown"),
        ([{"folder": FOLDER}], "needs folder, source"),
        ([ENTRY, ENTRY], "twice"),
    ],
)
def test_models_that_cannot_be_meant_are_refused(models: Any, words: str) -> None:
    text = models if isinstance(models, str) else json.dumps(models)
    settings = FetchSettings(models=text, directory=Path("/weights"))
    with pytest.raises(SettingsError, match=words):
        settings.sources()


def test_an_owner_that_is_no_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="OWNER"):
        FetchSettings(models="[]", directory=Path("/weights"), owner="../x")


def _environment(volume: Path, models: list[dict[str, object]]) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return {
        "UNDERSTUDY_WEIGHTS_MODELS": json.dumps(models),
        "UNDERSTUDY_WEIGHTS_DIRECTORY": str(volume),
        "PYTHONPATH": root,
    }


def test_a_job_that_is_killed_is_gone_on_with_by_the_next(
    server: StoreServer, volume: Path
) -> None:
    content = b"0123456789" * 200_000
    server.files = {"/b/k/big": content}
    # The server stops in the middle and keeps the connection: the Job hangs there and is killed.
    server.faults = {"/b/k/big": [("cut", 1_000_000), *[("status", 503)] * 50]}
    entry = {
        **ENTRY,
        "sums": sums({"big": content}),
        "max_bytes": 10_000_000,
        "endpoint": server.address,
    }
    environment = _environment(volume, [entry])
    with subprocess.Popen(
        [*COMMAND, "fetch"], env=environment, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if "is resumed" in line:
                break
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 143
    server.faults.clear()
    server.asked.clear()
    done = subprocess.run(
        [*COMMAND, "fetch"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert server.ranges("/b/k/big") == ["bytes=1000000-"]
    assert (volume / FOLDER / "big").read_bytes() == content
    assert f"{FOLDER} is published." in done.stderr
    waited = subprocess.run(
        [*COMMAND, "wait", str(volume), FOLDER], env=environment, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert waited.returncode == 0


def test_a_refusal_ends_the_job_with_a_sentence(server: StoreServer, volume: Path) -> None:
    server.files = {"/b/k/config.json": b"other"}
    entry = {**ENTRY, "sums": sums({"config.json": b"{}"}), "endpoint": server.address}
    done = subprocess.run(
        [*COMMAND, "fetch"], env=_environment(volume, [entry]), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("understudy weights: config.json is sha256:")
    assert not (volume / FOLDER / RECORD).exists()


def test_a_setting_that_is_missing_ends_it_at_once(volume: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "fetch"], env={"PYTHONPATH": _environment(volume, [])["PYTHONPATH"]},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "UNDERSTUDY_WEIGHTS_MODELS is not set" in done.stderr


def _run(volume: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": _environment(volume, [])["PYTHONPATH"]}
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_former_weights_stay_until_the_corrected_ones_are_published(
    server: StoreServer, volume: Path
) -> None:
    """Weights A run, an upgrade to B names a wrong digest, C corrects it."""
    server.files = {"/b/k/x": b"first"}
    first, wrong, corrected = (f"llm-{digit * 16}" for digit in "abc")
    entry = {**ENTRY, "endpoint": server.address}

    def fetch(folder: str, content: bytes) -> int:
        models = [{**entry, "folder": folder, "sums": sums({"x": content})}]
        return subprocess.run(
            [*COMMAND, "fetch"], env=_environment(volume, models), capture_output=True, timeout=60,
            check=False,
        ).returncode  # fmt: skip

    assert fetch(first, b"first") == 0
    server.files = {"/b/k/x": b"corrected"}
    assert fetch(wrong, b"never") == 3
    server.faults = {"/b/k/x": [("status", 404)]}
    assert fetch(corrected, b"corrected") == 1
    assert (volume / first / RECORD).is_file()
    assert fetch(corrected, b"corrected") == 0
    assert {path.name for path in volume.iterdir()} == {".fetching", first, corrected}


def test_a_step_of_a_job_is_left_out_where_what_it_makes_is_published(volume: Path) -> None:
    step = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('made')"]
    folder, work = "llm-0123456789abcdef", "packages-abc-x1"
    target = volume / ".fetching" / "made" / work / "files" / "model"
    doing = ["step", str(volume), folder, work, "files", *step, str(target)]
    assert _run(volume, "begin", str(volume), folder, work).returncode == 0
    assert _run(volume, *doing).returncode == 0
    assert target.read_text() == "made"
    assert _run(volume, "adopt", str(volume), folder, work).returncode == 0
    again = _run(volume, *doing)
    assert (again.returncode, target.exists()) == (0, False)
    assert "nothing is made" in again.stderr
    assert _run(volume, "adopt", str(volume), folder, work).returncode == 0
    assert _run(volume, "step", str(volume), "../x", work, "files", "true").returncode == 2
    assert _run(volume, "begin", str(volume), folder, "../x").returncode == 2
    with Store(volume).locked():
        busy = _run(volume, "begin", str(volume), folder, work)
    assert (busy.returncode, "Another Job works" in busy.stderr) == (1, True)
