"""Writes dashboards/*.json from boards/, and the chart's copies of what it installs.

A chart can only read files below itself, so it carries copies of the dashboards, the rules and the
collector's configuration. Run it as `python -m deploy.telemetry.generate`; with `--check` nothing
is written: a file that differs is named, and fails.
"""

import json
import sys
from pathlib import Path
from typing import Final

from deploy.telemetry.boards import DASHBOARDS

FOLDER: Final = Path(__file__).with_name("dashboards")
COPIED: Final = ("rules.yaml", "collector.yaml")
CHART_FILES: Final = Path(__file__).resolve().parents[2] / "charts" / "understudy" / "files"


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


def copies() -> dict[str, str]:
    """Return what the chart carries, by path below its folder `files`."""
    files = {name: FOLDER.with_name(name).read_text(encoding="utf-8") for name in COPIED}
    return files | {f"dashboards/{name}": text for name, text in rendered().items()}


def stale_copies(folder: Path = CHART_FILES) -> list[str]:
    """Return the paths of the chart's files that are missing, surplus or different."""
    fresh = copies()
    found = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }
    return sorted(name for name in fresh | found if fresh.get(name) != found.get(name))


def write_copies(folder: Path = CHART_FILES) -> None:
    """Make the chart's folder hold exactly the copies."""
    for name in stale_copies(folder):
        (folder / name).unlink(missing_ok=True)
    for name, text in copies().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write or compare; return the exit status."""
    if "--check" not in arguments:
        write()
        write_copies()
        return 0
    found = [FOLDER / name for name in stale()]
    found += [CHART_FILES / name for name in stale_copies()]
    for path in found:
        print(f"{path} is not what is generated: run `python -m deploy.telemetry.generate`.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
