"""Takes the entries of some packages, with their hashes, out of a lock file.

`python subset.py LOCK NAMES [WITHOUT]` prints the entries of the names in NAMES that are not in
WITHOUT. It runs while an image is built and needs nothing but Python.
"""

import re
import sys
from pathlib import Path


def entries(lock: str) -> list[tuple[str, str]]:
    """Return (name, entry) of each entry; one package may have several, by marker."""
    found = re.findall(r"^([a-z0-9][a-z0-9._-]*)(==.*(?:\n    --hash=.*)+)", lock, re.MULTILINE)
    return [(name, f"{name}{rest}\n") for name, rest in found]


def names(text: str) -> list[str]:
    """Return the names that a list holds, one a line; comments begin with #."""
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def subset(lock: str, wanted: list[str]) -> str:
    """Return the entries of the packages. Raises ValueError naming those that are not locked."""
    locked = entries(lock)
    missing = set(wanted) - {name for name, _ in locked}
    if missing:
        raise ValueError(f"not in the lock file: {', '.join(sorted(missing))}")
    return "".join(entry for name, entry in locked if name in set(wanted))


def main(lock: Path, wanted: Path, without: Path | None) -> None:
    """Print the subset."""
    left_out = names(without.read_text("utf-8")) if without else []
    kept = [name for name in names(wanted.read_text("utf-8")) if name not in left_out]
    sys.stdout.write(subset(lock.read_text("utf-8"), kept))


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    main(paths[0], paths[1], paths[2] if len(paths) > 2 else None)
