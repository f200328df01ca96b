"""Who is dialled, and with which certificate; what a failed handshake means.

The files behind the credentials belong to `understudy.serving`; here they are only used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of peer that is dialled over TLS."""

    name: str
    """Name that its certificate must have, whatever its address; empty is the address' host."""
    credentials: Callable[[], grpc.ChannelCredentials]
    """What to trust and present from now on: another object once the certificates are new."""


Peers = Callable[[str], Peer | None]
"""How to dial a component, such as `experts`; None is plaintext."""


def plaintext(component: str) -> Peer | None:  # noqa: ARG001
    """Dial every component without TLS."""
    return None


_CONNECTING: Final = ("failed to connect to all addresses", "connections to all backends failing")
"""How details begin where no connection could be set up, without balancing and with it."""
_CLOSED: Final = (
    "The peer closed the connection while it was set up: it may want TLS, or a certificate of an "
    "authority that it trusts; its log has the reason."
)
_MEANINGS: Final = (
    ("WRONG_VERSION_NUMBER", "The peer does not speak TLS, this end does."),
    ("certificate has expired", "The peer's certificate has ended; renew it."),
    ("certificate is not yet valid", "The peer's certificate has not begun; compare the clocks."),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "No authority that is trusted here issued the peer's certificate; compare both ca.crt.",
    ),
    (
        "Hostname Verification Check failed",
        "The peer's certificate has another name than the component that was dialled.",
    ),
    ("Socket closed", _CLOSED),
    ("Connection reset", _CLOSED),
)
"""Signs in the details of a call, the most telling first, and what they mean."""


def explain(details: str) -> str:
    """Return the details of a failed call, with what they mean where a handshake failed."""
    if not details.startswith(_CONNECTING):
        return details
    meanings = (meaning for sign, meaning in _MEANINGS if sign in details)
    meaning = next(meanings, "")
    return f"{meaning} ({details})" if meaning else details
