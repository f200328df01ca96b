"""Every value of values.yaml reaches a manifest: a marker in its place is found again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from tests.chart.manifests import CHART, Helm
from tests.chart.markers import BUILT_IN, COLLECTOR, SETS, SPECIAL

VALUES: Final[Mapping[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _marker(ordinal: int, path: str, default: object) -> object:
    """A value of the default's type that appears nowhere else in the manifests."""
    text = f"marker{ordinal}"
    if path.startswith("networkPolicy."):
        return [{"podSelector": {"matchLabels": {text: "true"}}}]
    if path.endswith(".resources"):
        return {"requests": {"cpu": text, "memory": text}, "limits": {"memory": text}}
    if isinstance(default, list):
        return [{"key": text, "operator": "Exists"}]
    if isinstance(default, dict):
        return {text: "true"}
    if isinstance(default, str):
        return text
    return (20_000_000 if path.endswith("Bytes") else 20_000) + ordinal


def _marks(value: object) -> str:
    """What must be found in the manifests for a value to have reached them."""
    if isinstance(value, list) and isinstance(value[0], int | str):
        return str(value[0])
    if isinstance(value, list) and "podSelector" in value[0]:
        return str(next(iter(value[0]["podSelector"]["matchLabels"])))
    if isinstance(value, list):
        return str(list(value[0].values())[-1 if "ttftS" in value[0] else 0])
    if isinstance(value, dict):
        first = next(iter(value.items()))
        return str(first[1]["cpu"] if first[0] == "requests" else first[0])
    return json.dumps(str(value).lower()) if isinstance(value, bool) else str(value)


def test_every_value_reaches_a_manifest(helm: Helm) -> None:
    markers = {
        path: _marker(100 + ordinal, path, default)
        for ordinal, (path, default) in enumerate(_leaves(VALUES))
        if path not in SPECIAL
    }
    pools = [{"name": "llm", "modelName": "m", "model": "m", "ffn": "remote"}]
    collector = {path: markers.pop(path) for path in tuple(markers) if "collector." in path}
    built_in = {**markers, **BUILT_IN, "pools": pools}
    sets = (built_in, {**collector, **COLLECTOR}, *SETS[1:])
    for values in sets:
        text = json.dumps(helm.render(values=values))
        unread = [path for path, value in values.items() if _marks(value) not in text]
        assert not {*unread} - {"pools", "tls.mode"}, "no template reads these"
