"""Reads files over HTTP from any offset on; what went wrong comes out as one of our errors.

Redirects are followed here, since a store sends to another host that must not see the credentials.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from understudy.errors import (
    FailedPrecondition,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
)
from understudy.weights.contents import CHUNK_BYTES

MAX_REDIRECTS: Final = 5
CONNECT_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 60.0
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PASSING: Final = (408, 425, 429)

Headers = Mapping[str, str]
Signer = Callable[[str, Headers], Headers]
"""Returns the headers of a request, credentials included, for a URL and the plain headers."""


class OutOfRange(UnderstudyError):
    """The source has nothing from that offset on: what was kept of the file is not its start."""


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of a file from `offset` on, which is 0 where the source cannot begin in the middle."""

    offset: int
    remaining_bytes: int | None
    """How many follow; None where the source does not say."""
    chunks: Iterator[bytes]
    """Raises Unavailable where the connection ends before its time."""


def unsigned(_url: str, headers: Headers) -> Headers:
    """The signer of what everybody may read."""
    return headers


def bearer(token: str) -> Signer:
    """Return a signer that shows a token."""
    return lambda url, headers: {**headers, "authorization": f"Bearer {guarded(url, token)}"}


def address(url: str) -> SplitResult:
    """Return the parts of an address. Raises FailedPrecondition where it is none of HTTP."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        begin = url.partition("?")[0].rpartition("@")[2]
        raise FailedPrecondition(f"{begin[:100]!r} is not an address like https://host.")
    return parts


def guarded(url: str, secret: str) -> str:
    """Return the secret. Raises FailedPrecondition where the URL would carry it in the open."""
    parts = address(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise FailedPrecondition(
            f"Credentials are not sent to {parts.netloc} without TLS: name it with https, or take"
            " the credentials away."
        )
    return secret


class Web:
    """One pool of connections."""

    def __init__(self, authorities: Path | None = None) -> None:
        """Trust the system's authorities, or those of a PEM file."""
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            retries=False,
            ssl_context=ssl.create_default_context(cafile=authorities),
            maxsize=8,
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    @contextmanager
    def open(self, url: str, sign: Signer = unsigned, offset: int = 0) -> Iterator[Body]:
        """Read a file from an offset on.

        Raises Unavailable (try again), OutOfRange, NotFound, Unauthenticated or FailedPrecondition.
        """
        wanted = {"accept-encoding": "identity"}
        if offset:
            wanted["range"] = f"bytes={offset}-"
        response = self._follow(url, sign, wanted)
        try:
            raise_for(response.status, url)
            yield Body(
                _begins_at(response, url, offset),
                _declared(response),
                _chunks(response, url),
            )
        finally:
            response.close()

    def document(self, url: str, sign: Signer = unsigned, accept: str = "*/*") -> "Document":
        """Read a small answer whole, whatever its status. Raises Unavailable."""
        response = self._follow(url, sign, {"accept": accept})
        try:
            content = b"".join(_bounded(_chunks(response, url), url))
            return Document(response.status, dict(response.headers), content)
        finally:
            response.close()

    def post(self, url: str, fields: Mapping[str, str]) -> "Document":
        """Send a form and read the answer whole. Raises Unavailable."""
        with _failures(url):
            response = self._pool.request(
                "POST", url, fields=dict(fields), encode_multipart=False, redirect=False,
                preload_content=False,
            )  # fmt: skip
        try:
            content = b"".join(_bounded(_chunks(response, url), url))
            return Document(response.status, dict(response.headers), content)
        finally:
            response.close()

    def _follow(self, url: str, sign: Signer, wanted: Headers) -> urllib3.BaseHTTPResponse:
        first = address(url)
        for _ in range(MAX_REDIRECTS + 1):
            parts = address(url)
            is_home = (parts.scheme, parts.netloc) == (first.scheme, first.netloc)
            headers = sign(url, wanted) if is_home else wanted
            with _failures(url):
                response = self._pool.request(
                    "GET", url, headers=headers, redirect=False, preload_content=False
                )
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or location is None:
                return response
            response.close()
            url = _joined(url, location)
            if first.scheme == "https" and address(url).scheme != "https":
                raise FailedPrecondition(f"{shown(url)} is where {first.netloc} sends to in clear.")
        raise FailedPrecondition(f"{first.netloc} redirects more than {MAX_REDIRECTS} times.")


@dataclass(frozen=True, slots=True)
class Document:
    """A small answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def header(self, name: str) -> str:
        """Return a header's value, or nothing."""
        lower = {key.lower(): value for key, value in self.headers.items()}
        return lower.get(name, "")


def raise_for(status: int, url: str) -> None:
    """Raise what a status means, without the URL's query, which may hold a signature."""
    if status in (200, 206):
        return
    place = shown(url)
    if status == 416:
        raise OutOfRange(f"{place} is shorter than what was kept of it.")
    if status == 404:
        raise NotFound(f"{place} does not exist; correct the source, or the sums that name it.")
    if status in (401, 403):
        raise Unauthenticated(
            f"{place} may not be read (status {status}): check that it exists and what the Secret"
            " with its credentials may read."
        )
    if status in _PASSING or status >= 500:
        raise Unavailable(f"{place} cannot be read now (status {status}).")
    raise FailedPrecondition(f"{place} was answered with status {status}; is the endpoint right?")


def shown(url: str) -> str:
    """Return the URL for messages: without query and user."""
    parts = address(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _joined(url: str, location: str) -> str:
    try:
        joined = urljoin(url, location)
        address(joined)
    except (ValueError, FailedPrecondition) as error:
        raise FailedPrecondition(
            f"{shown(url)} redirects to what is no address of HTTP; is the endpoint right?"
        ) from error
    return joined


def _begins_at(response: urllib3.BaseHTTPResponse, url: str, offset: int) -> int:
    if response.status == 200 or not offset:
        return 0
    begin = response.headers.get("content-range", "")
    if not begin.startswith(f"bytes {offset}-"):
        raise FailedPrecondition(
            f"{shown(url)} was asked for bytes from {offset} on and answered {begin[:80]!r}."
        )
    return offset


def _declared(response: urllib3.BaseHTTPResponse) -> int | None:
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _chunks(response: urllib3.BaseHTTPResponse, url: str) -> Iterator[bytes]:
    with _failures(url):
        yield from response.stream(CHUNK_BYTES, decode_content=False)


def _bounded(chunks: Iterator[bytes], url: str) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_DOCUMENT_BYTES:
            raise FailedPrecondition(
                f"{shown(url)} has more than {MAX_DOCUMENT_BYTES} bytes, which no such answer has."
            )
        yield chunk


@contextmanager
def _failures(url: str) -> Iterator[None]:
    try:
        yield
    except SSLError as error:
        raise FailedPrecondition(
            f"{shown(url)} is not trusted: {error}. Add its authority to the Secret as `ca.crt`."
        ) from error
    except (HTTPError, OSError) as error:
        kind = type(error).__name__
        raise Unavailable(f"{shown(url)} broke off or does not answer ({kind}).") from error
