"""Where weights come from: one class per kind of source, each reading a named file from an offset.

None of them lists what it has. What has to be there is told by the sums; a source is only asked for
that.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from understudy.errors import FailedPrecondition, NotFound
from understudy.weights.contents import (
    CHUNK_BYTES,
    MAX_SUMS_BYTES,
    SUMS,
    Contents,
    parse_digest,
    parse_sums,
)
from understudy.weights.credentials import Secret
from understudy.weights.oci import OciArtifact, open_artifact
from understudy.weights.settings import ModelSource
from understudy.weights.signing import AccessKey, signed_headers
from understudy.weights.tokens import GoogleToken
from understudy.weights.web import (
    Body,
    Headers,
    OutOfRange,
    Signer,
    Web,
    address,
    bearer,
    unsigned,
)

HUB: Final = "https://huggingface.co"
GS: Final = "https://storage.googleapis.com"
SCHEMES: Final = ("s3", "gs", "oci", "hub", "file")
_HUB: Final = re.compile(r"([^/@]+/[^/@]+)@([^/@]+)/(.*)")


class Place(Protocol):
    """Reads the files of one model."""

    def open(self, name: str, offset: int) -> AbstractContextManager[Body]:
        """Read a file from an offset on. Raises what `Web.open` raises."""
        ...


@dataclass(frozen=True, slots=True)
class WebPlace:
    """Files below an address."""

    web: Web
    base: str
    sign: Signer

    def open(self, name: str, offset: int) -> AbstractContextManager[Body]:
        """Read a file from an offset on."""
        return self.web.open(f"{self.base}{quote(name, safe='/~')}", self.sign, offset)


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """Files of a mounted volume."""

    folder: Path

    @contextmanager
    def open(self, name: str, offset: int) -> Iterator[Body]:
        """Read a file from an offset on; a link that leads out of the folder is refused."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise NotFound(f"{self.folder / name} is no file of the mounted volume.")
        size = path.stat().st_size
        if offset > size:
            raise OutOfRange(f"{path} is shorter than what was kept of it.")
        with path.open("rb") as file:
            file.seek(offset)
            yield Body(offset, size - offset, iter(lambda: file.read(CHUNK_BYTES), b""))


@dataclass(frozen=True, slots=True)
class Origin:
    """A model's place, and what it must hold."""

    place: Place
    contents: Contents


def open_origin(model: ModelSource, web: Web) -> Origin:
    """Return where to read a model and what it must be.

    Raises FailedPrecondition for a source that is none or sums that do not fit their digest, and
    what reading the sums raises.
    """
    scheme, _, rest = model.source.partition("://")
    if scheme not in SCHEMES or not rest:
        raise FailedPrecondition(
            f"The source {model.source!r} is none of {', '.join(SCHEMES)}, written as scheme://..."
        )
    secret = Secret(model.credentials)
    if scheme == "oci":
        if not model.digest:
            raise FailedPrecondition(f"{model.source} needs the digest of its manifest, not sums.")
        artifact: OciArtifact = open_artifact(web, rest, model.digest, model.endpoint, secret)
        return Origin(artifact, artifact.contents)
    folder, file = _OPENERS[scheme](web, rest, model, secret)
    return Origin(folder, _contents_of(folder, file, model))


def _contents_of(folder: Place, file: str, model: ModelSource) -> Contents:
    if model.sums:
        return parse_sums(model.sums)
    digest = parse_digest(model.digest)
    if file:
        return Contents({file: digest})
    content = _small(folder, SUMS)
    contents = parse_sums(content.decode("utf-8", errors="replace"))
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise FailedPrecondition(
            f"{SUMS} of {model.source} is sha256:{found}, not {model.digest}: it is not what was"
            " meant. Correct the digest, or the source."
        )
    return contents


def _small(place: Place, name: str) -> bytes:
    content = b""
    with place.open(name, 0) as body:
        for chunk in body.chunks:
            content += chunk
            if len(content) > MAX_SUMS_BYTES:
                raise FailedPrecondition(f"{name} has more than {MAX_SUMS_BYTES} bytes.")
    return content


def _open_s3(web: Web, rest: str, model: ModelSource, secret: Secret) -> tuple[Place, str]:
    endpoint = model.endpoint or f"https://s3.{model.region}.amazonaws.com"
    folder, _, file = rest.rpartition("/")
    return WebPlace(web, _base(endpoint, folder, model), _s3_signer(model, secret)), file


def _s3_signer(model: ModelSource, secret: Secret) -> Signer:
    if not secret.is_there:
        return unsigned
    key = AccessKey(
        secret.read("access-key-id"),
        secret.read("secret-access-key"),
        secret.find("session-token") or "",
    )

    def sign(url: str, headers: Headers) -> Headers:
        return signed_headers(url, headers, key, region=model.region, now=datetime.now(UTC))

    return sign


def _open_gs(web: Web, rest: str, model: ModelSource, secret: Secret) -> tuple[Place, str]:
    sign = GoogleToken(web, secret.read("service-account.json")) if secret.is_there else unsigned
    folder, _, file = rest.rpartition("/")
    return WebPlace(web, _base(model.endpoint or GS, folder, model), sign), file


def _open_hub(web: Web, rest: str, model: ModelSource, secret: Secret) -> tuple[Place, str]:
    found = _HUB.fullmatch(rest)
    if found is None:
        raise FailedPrecondition(
            f"The source {model.source!r} is not hub://owner/name@revision/ with a file or none."
        )
    name, revision, path = found.groups()
    inner, _, file = path.rpartition("/")
    folder = f"{name}/resolve/{revision}" + (f"/{inner}" if inner else "")
    sign = bearer(secret.read("token")) if secret.is_there else unsigned
    return WebPlace(web, _base(model.endpoint or HUB, folder, model), sign), file


def _open_file(_web: Web, rest: str, model: ModelSource, _secret: Secret) -> tuple[Place, str]:
    folder, _, file = rest.rpartition("/")
    path = Path(folder or "/")
    if not path.is_absolute() or ".." in path.parts:
        raise FailedPrecondition(f"The source {model.source!r} is not file:///path without '..'.")
    return FolderPlace(path), file


def _base(endpoint: str, folder: str, model: ModelSource) -> str:
    if address(endpoint).query:
        raise FailedPrecondition(f"The endpoint {endpoint!r} is not an address like https://host.")
    if not folder or any(part in ("", ".", "..") for part in folder.split("/")):
        raise FailedPrecondition(f"The source {model.source!r} names no folder, or '..' in it.")
    return f"{endpoint.rstrip('/')}/{quote(folder, safe='/~')}/"


_OPENERS: Final[dict[str, Callable[[Web, str, ModelSource, Secret], tuple[Place, str]]]] = {
    "s3": _open_s3,
    "gs": _open_gs,
    "hub": _open_hub,
    "file": _open_file,
}
