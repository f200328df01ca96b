"""Versions on stage: an SLM with its calibrators as one unit.

A version is a directory with a `manifest.json`; thresholds are void for any other weights, so a
calibrator that does not name this very version, or whose bytes differ, is refused.
"""

from understudy.registry.version import MANIFEST, Version, read_version, write_manifest

__all__ = ["MANIFEST", "Version", "read_version", "write_manifest"]
