"""The package check in the platform's own words: what must not be served is a precondition."""

from pathlib import Path

from understudy.errors import FailedPrecondition
from understudy_kernels.packaging.serving import manifest
from understudy_kernels.packaging.serving.manifest import Manifest, PackageError


def check_package(directory: Path, config_digest: str | None = None) -> Manifest:
    """Return a package's manifest if this process may run it; hashes every file.

    Raises FailedPrecondition naming what does not match: config digest, torch version, ISA, or a
    file's content.
    """
    try:
        return manifest.check_package(directory, config_digest)
    except PackageError as error:
        raise FailedPrecondition(str(error), {"package": directory.name}) from error
