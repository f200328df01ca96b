"""Writes dashboards/*.json from boards/: `python -m deploy.telemetry.generate`.

With `--check` nothing is written: a file that differs is named, and fails.
"""

import json
import sys
from pathlib import Path
from typing import Final

from deploy.telemetry.boards import DASHBOARDS

FOLDER: Final = Path(__file__).with_name("dashboards")


def rendered() -> dict[str, str]:
    """Return the text of every dashboard by file name."""
    return {f"{board.name}.json": json.dumps(board.json(), indent=2) + "\n" for board in DASHBOARDS}


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the names of files that are missing, surplus or different."""
    fresh = rendered()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in fresh | found if fresh.get(name) != found.get(name))


def write(folder: Path = FOLDER) -> None:
    """Make the folder hold exactly the dashboards."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        path.unlink()
    for name, text in rendered().items():
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write or compare; return the exit status."""
    if "--check" not in arguments:
        write()
        return 0
    for name in (names := stale()):
        print(
            f"{FOLDER / name} is not what boards/ gives: run `python -m deploy.telemetry.generate`."
        )
    return int(bool(names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
