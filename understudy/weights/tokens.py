"""Access tokens of Google Cloud for a service account's key (RFC 7523, OAuth 2.0 with a JWT)."""

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from understudy.errors import FailedPrecondition, Unauthenticated, Unavailable
from understudy.weights.web import Headers, Web, guarded

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_only"
GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LIFETIME_S: Final = 3600
MARGIN_S: Final = 300


class GoogleToken:
    """A signer that asks for a token when it has none that still lasts; for any thread."""

    def __init__(self, web: Web, key: str, clock: Callable[[], float] = time.time) -> None:
        """Take the JSON key of a service account. Raises FailedPrecondition where it is none."""
        self._web, self._clock = web, clock
        try:
            fields = json.loads(key)
            self._email, self._uri = str(fields["client_email"]), str(fields["token_uri"])
            private = serialization.load_pem_private_key(fields["private_key"].encode(), None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(
                "service-account.json is not the JSON key of a service account: "
                f"{type(error).__name__}."
            ) from error
        if not isinstance(private, rsa.RSAPrivateKey):
            raise FailedPrecondition("The key of service-account.json is not an RSA key.")
        self._private = private
        self._lock = threading.Lock()
        self._token, self._ends_at = "", 0.0

    def __call__(self, url: str, headers: Headers) -> Headers:
        """Return the headers with a token."""
        with self._lock:
            if self._clock() > self._ends_at - MARGIN_S:
                self._renew()
            return {**headers, "authorization": f"Bearer {guarded(url, self._token)}"}

    def _renew(self) -> None:
        now = int(self._clock())
        claims = {"iss": self._email, "scope": SCOPE, "aud": self._uri, "iat": now}
        assertion = self._signed({**claims, "exp": now + LIFETIME_S})
        guarded(self._uri, assertion)
        answer = self._web.post(self._uri, {"grant_type": GRANT, "assertion": assertion})
        if answer.status >= 500 or answer.status == 429:
            raise Unavailable(f"{self._uri} gives no tokens now (status {answer.status}).")
        if answer.status != 200:
            raise Unauthenticated(f"{self._uri} refuses {self._email} (status {answer.status}).")
        try:
            fields = json.loads(answer.content)
            self._token, lasts_s = str(fields["access_token"]), float(fields["expires_in"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FailedPrecondition(f"{self._uri} did not answer with a token.") from error
        self._ends_at = now + lasts_s

    def _signed(self, claims: Mapping[str, object]) -> str:
        parts = ({"alg": "RS256", "typ": "JWT"}, claims)
        text = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        signature = self._private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_encoded(signature)}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
