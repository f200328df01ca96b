"""Runs in `python -I -S`: imports modules where only some files exist.

Reads from standard input, as JSON: `site`, the folder of installed packages; `files`, those of its
files that exist; `distributions`, their names; `roots` of a checkout and its `sources` that exist;
`modules` to import. Writes, as JSON: `failures` by module; `absent`, each top-level package that a
function of the checkout would import later and that is not there.
"""

import ast
import importlib
import importlib.metadata
import json
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class OnlyThese(importlib.metadata.DistributionFinder):
    """Finds what an image would hold; everything else outside the standard library is missing."""

    def __init__(self, told):
        self.site = told["site"]
        self.roots = told["roots"]
        self.files = frozenset(told["files"])
        self.folders = {str(parent) for file in self.files for parent in Path(file).parents}
        self.sources = tuple(told["sources"])
        self.distributions = frozenset(told["distributions"])

    def find_spec(self, name, path=None, target=None):
        if path is None and name in sys.stdlib_module_names:
            return None
        places = [*self.roots, self.site] if path is None else list(path)
        if not any(place.startswith((*self.roots, self.site)) for place in places):
            return None
        spec = PathFinder.find_spec(name, places)
        if spec is None or not self._exists(spec):
            raise ModuleNotFoundError(f"No module named {name!r} in the image", name=name)
        return spec

    def find_distributions(self, context):
        inside = importlib.metadata.MetadataPathFinder.find_distributions(
            importlib.metadata.DistributionFinder.Context(name=context.name, path=[self.site])
        )
        return (one for one in inside if normal(one.metadata["Name"]) in self.distributions)

    def _exists(self, spec: ModuleSpec) -> bool:
        if spec.origin is not None:
            return spec.origin in self.files or spec.origin.startswith(self.sources)
        kept = [one for one in spec.submodule_search_locations or () if self._holds(one)]
        spec.submodule_search_locations = kept
        return bool(kept)

    def _holds(self, folder: str) -> bool:
        return folder in self.folders or any(one.startswith(folder) for one in self.sources)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def later(path: Path) -> set[str]:
    """Return the top-level packages that a module imports, now or in a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def main(told) -> dict:
    finder = OnlyThese(told)
    sys.meta_path.insert(0, finder)
    failures = {}
    for name in told["modules"]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failures[name] = f"{type(error).__name__}: {error}"
    ours = {
        Path(module.__file__)
        for module in list(sys.modules.values())
        if (getattr(module, "__file__", None) or "").startswith(finder.sources)
    }
    absent = {}
    for path in sorted(ours):
        for name in later(path):
            try:
                finder.find_spec(name)
            except ModuleNotFoundError:
                absent.setdefault(name, []).append(path.name)
    return {"failures": failures, "absent": absent}


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
