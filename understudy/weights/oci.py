"""Weights as an OCI artifact: a manifest whose layers are files, as `oras push` makes it.

Layers are addressed by their sha256 and named by the annotation `org.opencontainers.image.title`.
Layers without a name (a container image, whose layers are archives) are refused.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlencode

from understudy.errors import FailedPrecondition
from understudy.weights.contents import Contents, parse_digest
from understudy.weights.credentials import Secret
from understudy.weights.web import (
    Body,
    Document,
    Headers,
    Web,
    address,
    guarded,
    raise_for,
    shown,
)

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
TITLE: Final = "org.opencontainers.image.title"
TOKEN_LASTS_S: Final = 60.0
"""What a registry's token lasts at least (distribution, "Token Authentication")."""
_REFERENCE: Final = re.compile(
    r"([^/@:]+(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::[\w.-]+)?(?:@(sha256:[0-9a-f]{64}))?"
)
_FIELD: Final = re.compile(r'(\w+)="([^"]*)"')


class OciArtifact:
    """The files of one manifest."""

    def __init__(self, web: Web, base: str, signer: "RegistrySigner", contents: Contents) -> None:
        self._web, self._base, self._signer = web, base, signer
        self.contents = contents
        """The layers' digests by their names."""

    def open(self, name: str, offset: int) -> AbstractContextManager[Body]:
        """Read a file from an offset on."""
        url = f"{self._base}/blobs/sha256:{self.contents.files[name]}"
        return self._web.open(url, self._signer, offset)


class RegistrySigner:
    """Shows a registry what it asked for in its challenge; for any thread."""

    def __init__(
        self, web: Web, secret: Secret, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._web, self._secret, self._clock = web, secret, clock
        self._lock = threading.Lock()
        self._authorization, self._made_at = "", 0.0
        self._challenge: Mapping[str, str] | None = None

    def __call__(self, url: str, headers: Headers) -> Headers:
        """Return the headers with what the challenge led to, if there was one."""
        with self._lock:
            if self._challenge is not None and self._clock() > self._made_at + TOKEN_LASTS_S:
                self._renew(self._challenge)
            known = self._authorization
        return {**headers, "authorization": guarded(url, known)} if known else headers

    def answer(self, challenge: str, url: str) -> None:
        """Take up a challenge. Raises FailedPrecondition for one that cannot be answered.

        With credentials, the challenge of whoever answers without TLS is not taken up: it could
        name any realm.
        """
        if self._secret.is_there:
            guarded(url, "")
        kind, _, rest = challenge.partition(" ")
        fields = dict(_FIELD.findall(rest))
        with self._lock:
            if kind.lower() == "basic":
                self._authorization = self._basic(url)
            elif kind.lower() == "bearer" and "realm" in fields:
                self._challenge = fields
                self._renew(fields)
            else:
                raise FailedPrecondition(f"{shown(url)} asks for {kind!r}, unknown here.")

    def _renew(self, fields: Mapping[str, str]) -> None:
        self._authorization, self._made_at = f"Bearer {self._token(fields)}", self._clock()

    def _basic(self, url: str) -> str:
        pair = f"{self._secret.read('username')}:{self._secret.read('password')}"
        return guarded(url, f"Basic {base64.b64encode(pair.encode()).decode()}")

    def _token(self, fields: Mapping[str, str]) -> str:
        realm = fields["realm"]
        asked = {name: fields[name] for name in ("service", "scope") if name in fields}
        url = f"{realm}{'&' if address(realm).query else '?'}{urlencode(asked)}"
        basic = {"authorization": self._basic(url)} if self._secret.is_there else {}
        answer = self._web.document(url, lambda _url, headers: {**headers, **basic})
        raise_for(answer.status, url)
        content = _parsed(answer.content, url)
        token = content.get("token") or content.get("access_token")
        if not isinstance(token, str):
            raise FailedPrecondition(f"{shown(url)} did not answer with a token.")
        return token


def open_artifact(
    web: Web, reference: str, digest: str, endpoint: str, secret: Secret
) -> OciArtifact:
    """Read the manifest of `registry/name` by its digest.

    Raises FailedPrecondition for a reference or a manifest that does not fit, and what reading
    raises.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None or (found[3] or digest) != digest:
        raise FailedPrecondition(
            f"oci://{reference} is not registry/name, or has another digest than {digest}."
        )
    wanted = parse_digest(digest)
    base = f"{(endpoint or f'https://{found[1]}').rstrip('/')}/v2/{found[2]}"
    url, signer = f"{base}/manifests/{digest}", RegistrySigner(web, secret)
    answer = _manifest(web, url, signer)
    actual = hashlib.sha256(answer.content).hexdigest()
    if actual != wanted:
        raise FailedPrecondition(f"{shown(url)} is sha256:{actual}, not what was asked for.")
    return OciArtifact(web, base, signer, _contents(_parsed(answer.content, url), url))


def _manifest(web: Web, url: str, signer: RegistrySigner) -> Document:
    answer = web.document(url, signer, accept=MANIFEST)
    if answer.status == 401:
        signer.answer(answer.header("www-authenticate"), url)
        answer = web.document(url, signer, accept=MANIFEST)
    raise_for(answer.status, url)
    return answer


def _contents(manifest: Mapping[str, object], url: str) -> Contents:
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise FailedPrecondition(
            f"{shown(url)} is {manifest.get('mediaType', 'something')!r} without layers: name the"
            " digest of one manifest, not that of an index."
        )
    files: dict[str, str] = {}
    for number, layer in enumerate(layers):
        layer = layer if isinstance(layer, dict) else {}
        title = (layer.get("annotations") or {}).get(TITLE)
        if not isinstance(title, str) or title in files:
            raise FailedPrecondition(
                f"Layer {number} of {shown(url)} has no name of its own ({TITLE}): weights are"
                " pushed as files (`oras push`), not as a container image."
            )
        files[title] = parse_digest(str(layer.get("digest")))
    return Contents(files)


def _parsed(content: bytes, url: str) -> Mapping[str, object]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{shown(url)} did not answer with JSON.") from error
    if not isinstance(parsed, dict):
        raise FailedPrecondition(f"{shown(url)} did not answer with a JSON object.")
    return parsed
