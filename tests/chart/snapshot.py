"""The chart's default rendering as one committed file, so that a change of it is seen in review.

`python -m tests.chart.snapshot` renews the file with the Helm that the tests use. What
the chart draws at random is masked, and objects stand in the order of their kinds and names.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from deploy.tools.build_helm import find_helm
from tests.chart.manifests import Helm, Manifest

SNAPSHOT: Final = Path(__file__).with_name("snapshots") / "default.yaml"
COMMAND: Final = "python -m tests.chart.snapshot"
MASK: Final = "masked"


def snapshot_of(manifests: Sequence[Manifest]) -> str:
    """Return the manifests as text that is the same at every rendering."""
    ordered = sorted(manifests, key=lambda one: (one["kind"], one["metadata"]["name"]))
    return yaml.safe_dump_all(map(_masked, ordered), sort_keys=True, width=100)


def _masked(manifest: Manifest) -> Manifest:
    if manifest["kind"] != "Secret":
        return manifest
    return {**manifest, "data": dict.fromkeys(manifest["data"], MASK)}


def main() -> int:
    """Write the snapshot; return the exit status."""
    binary = find_helm(os.environ)
    if binary is None:
        sys.stderr.write("There is no Helm: `make setup` builds one where Go is installed.\n")
        return 1
    SNAPSHOT.write_text(snapshot_of(Helm(binary).render()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
