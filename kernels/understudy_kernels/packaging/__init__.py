"""Packages: programs compiled for one machine and their weights, as Triton serves them.

A *bundle* is what a caller that knows models hands over: an exported program that takes its weights
as inputs, the weights, and what they are. It fits any machine. A *package* is a bundle compiled for
one torch version and instruction set; a *repository* is Triton's folder of packages by name and
version. Decision 0007 says why.
"""

from understudy_kernels.packaging.bundle import Bundle, read_bundle, write_bundle
from understudy_kernels.packaging.checking import check_package
from understudy_kernels.packaging.compiling import compile_programs
from understudy_kernels.packaging.repository import publish, remove_version, versions

__all__ = [
    "Bundle",
    "check_package",
    "compile_programs",
    "publish",
    "read_bundle",
    "remove_version",
    "versions",
    "write_bundle",
]
