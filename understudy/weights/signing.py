"""Signature version 4, with which S3 and its likes know who reads (AWS, "Signing requests").

Pure: the time comes in, headers go out. Only reading is signed: a GET without a body.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Who reads; the token is there for temporary keys."""

    id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def signed_headers(
    url: str, headers: Mapping[str, str], key: AccessKey, *, region: str, now: datetime
) -> dict[str, str]:
    """Return the headers of a GET of `url` (its path encoded already), signed at `now` (UTC)."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(url)
    sent = {**headers, "host": parts.netloc, "x-amz-content-sha256": EMPTY, "x-amz-date": stamp}
    if key.token:
        sent["x-amz-security-token"] = key.token
    lower = {name.lower(): " ".join(value.split()) for name, value in sent.items()}
    names = ";".join(sorted(lower))
    lines = "".join(f"{name}:{lower[name]}\n" for name in sorted(lower))
    request = "\n".join(("GET", parts.path or "/", parts.query, lines, names, EMPTY))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    to_sign = "\n".join((ALGORITHM, stamp, scope, hashed))
    signing_key = f"AWS4{key.secret}".encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    signature = hmac.new(signing_key, to_sign.encode(), "sha256").hexdigest()
    authorization = (
        f"{ALGORITHM} Credential={key.id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**sent, "authorization": authorization}
