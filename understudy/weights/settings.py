"""Settings of the fetching Job, prefix UNDERSTUDY_WEIGHTS_."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Self

from understudy.serving import SettingsError, read_settings, text_or_file

PREFIX: Final = "UNDERSTUDY_WEIGHTS_"
MAX_MODELS: Final = 64
OWNER: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
FOLDER: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?-[0-9a-f]{16}")
"""A model's name and the start of the digest of what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One model: where it comes from and what it must be."""

    folder: str
    """Name of its folder in the volume."""
    source: str
    """`s3://bucket/key`, `gs://bucket/key`, `hub://owner/name@revision/file`,
    `oci://registry/name` or `file:///path`; one that ends with `/` is a folder of files."""
    digest: str = ""
    """`sha256:...` of the one file, of the folder's SHA256SUMS, or of the OCI manifest."""
    sums: str = ""
    """Instead of the digest: what `sha256sum` prints for the folder's files."""
    max_bytes: int = 0
    """Most bytes that the model may have."""
    endpoint: str = ""
    """Address of the service, for others than the public one."""
    region: str = "us-east-1"
    """Region of the bucket, for s3."""
    credentials: Path | None = None
    """Folder with the keys of a Secret; none (default) reads what everybody may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """What is fetched, and where to."""

    models: str
    """JSON list of models, or @file; the fields are those of ModelSource."""
    directory: Path
    """The volume; every model gets a folder of its own there."""
    owner: str = "understudy"
    """Whose models these are; what it wanted two changes ago is removed from the volume."""

    def __post_init__(self) -> None:
        if not OWNER.fullmatch(self.owner):
            raise SettingsError(f"{PREFIX}OWNER is {self.owner!r}; use a-z, 0-9 and '-'.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises SettingsError naming what is missing, bad or unknown."""
        return read_settings(cls, PREFIX, environ)

    def sources(self) -> tuple[ModelSource, ...]:
        """Return the models. Raises SettingsError for a list that is none, or a bad entry."""
        try:
            listed = json.loads(text_or_file(self.models))
        except ValueError as error:
            raise SettingsError(f"{PREFIX}MODELS is not JSON: {error}") from error
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_MODELS:
            raise SettingsError(f"{PREFIX}MODELS must list 1 to {MAX_MODELS} models.")
        found = tuple(map(_source, listed))
        if len({one.folder for one in found}) < len(found):
            raise SettingsError(f"{PREFIX}MODELS names a folder twice.")
        return found


def _source(entry: object) -> ModelSource:
    types = {one.name: int if one.name == "max_bytes" else str for one in fields(ModelSource)}
    if not isinstance(entry, dict) or not {"folder", "source", "max_bytes"} <= entry.keys():
        raise SettingsError(f"{PREFIX}MODELS: each entry needs folder, source and max_bytes.")
    for name, value in entry.items():
        if name not in types or type(value) is not types[name]:
            raise SettingsError(f"{PREFIX}MODELS: {name!r} is unknown, or of the wrong type.")
    if not FOLDER.fullmatch(entry["folder"]):
        raise SettingsError(f"{PREFIX}MODELS: {entry['folder']!r} does not name a folder.")
    if entry["max_bytes"] < 1:
        raise SettingsError(f"{PREFIX}MODELS: max_bytes of {entry['folder']} is not positive.")
    if bool(entry.get("digest")) == bool(entry.get("sums")):
        raise SettingsError(
            f"{PREFIX}MODELS: {entry['folder']} needs either digest or sums: weights that nothing"
            " vouches for are not fetched."
        )
    credentials = Path(entry["credentials"]) if entry.get("credentials") else None
    return ModelSource(**{**entry, "credentials": credentials})
