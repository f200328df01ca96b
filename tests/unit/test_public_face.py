"""What `import understudy` offers, and what it must not load."""

import json
import subprocess
import sys

import understudy
from understudy import client, errors

HEAVY = {"torch", "numpy", "redis", "llguidance", "tokenizers", "typer", "rich", "starlette"}


def test_the_exported_names_are_sorted_and_exist() -> None:
    assert understudy.__all__ == sorted(understudy.__all__)
    assert all(name in vars(understudy) for name in understudy.__all__)


def test_the_face_is_the_clients_results_and_every_error() -> None:
    failures = {error.__name__ for error in errors.REASONS.values()} | {"UnderstudyError"}
    assert set(understudy.__all__) == set(client.__all__) | failures


def test_importing_understudy_loads_no_heavy_package() -> None:
    code = "import json, sys, understudy; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
    )
    assert not HEAVY & set(json.loads(found.stdout))


def test_importing_the_fakes_loads_no_heavy_package() -> None:
    code = (
        "import json, sys, understudy.testing; "
        "print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
    )
    assert not HEAVY & set(json.loads(found.stdout))
