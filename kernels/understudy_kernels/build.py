"""Compile the operators ahead of time: `python -m understudy_kernels.build`."""

import logging
import sys
from typing import Final

from understudy.errors import FailedPrecondition
from understudy_kernels.compiling import build

LOG: Final = logging.getLogger(__name__)


def main() -> int:
    """Build with progress on standard output; 0 also where the reference has to serve."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger(__package__).setLevel(logging.DEBUG)
    try:
        LOG.info("Kernels: %s", build())
    except FailedPrecondition as error:
        LOG.warning("%s", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
