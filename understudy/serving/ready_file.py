"""The file by which a service tells the local runner that it is ready, and on which ports."""

import json
import os
from pathlib import Path

from understudy.errors import FailedPrecondition


def write_ready_file(path: Path, port: int, metrics_port: int | None) -> None:
    """Write `{"port", "metrics_port", "pid"}` atomically: a reader sees all of it or no file."""
    content = json.dumps({"port": port, "metrics_port": metrics_port, "pid": os.getpid()})
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise FailedPrecondition(
            f"The ready file {path} cannot be written ({error.strerror}); "
            "create its folder or choose another path."
        ) from error
