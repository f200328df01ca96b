"""How a process talks to others: in plaintext, or over TLS as the component it is."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import Unauthenticated
from understudy.rpc import Peer
from understudy.serving.certificates import CertificateError
from understudy.serving.identity import Identity
from understudy.serving.service_settings import ServingSettings
from understudy.serving.settings import SettingsError

ANYONE: Final = frozenset({"*"})
"""As `callers` of a server: callers from outside, who have no certificate of ours."""


@dataclass(frozen=True, slots=True)
class Transport:
    """The identities of a process; None where it talks in plaintext."""

    identity: Identity | None = None
    """Towards other services."""
    public: Identity | None = None
    """Towards callers from outside."""

    @classmethod
    def open(cls, settings: ServingSettings, public_dir: Path | None = None) -> "Transport":
        """Read the certificates that the settings name; raises SettingsError."""
        own_dir = settings.tls_dir
        try:
            return cls(
                None if own_dir is None else Identity(own_dir, settings.tls_domain),
                None if public_dir is None else Identity(public_dir, is_public=True),
            )
        except CertificateError as error:
            raise SettingsError(error.message, error.metadata) from error

    def peer(self, component: str) -> Peer | None:
        """Return how to dial a component; None is plaintext."""
        return None if self.identity is None else self.identity.peer(component)

    def towards(self, callers: Collection[str]) -> Identity | None:
        """Return what these callers get to see; None is plaintext."""
        return self.public if callers is ANYONE else self.identity

    def permitted(self, callers: Collection[str]) -> "Callers | None":
        """Return the check of callers' certificates; None where they need none."""
        if callers is ANYONE or self.identity is None:
            return None
        return Callers(self.identity, frozenset(callers))


PLAINTEXT: Final = Transport()
"""Without certificates, on any side."""


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call a server: peers with the certificate of a permitted component."""

    identity: Identity
    permitted: Collection[str]

    def check(self, names: Collection[str]) -> None:
        """Raise Unauthenticated where no component that these names stand for may call."""
        components = self.identity.components_of(names)
        if components.isdisjoint(self.permitted):
            raise Unauthenticated(
                f"The certificate of the caller is that of {_listed(components, 'no component')}; "
                f"this service takes calls from {_listed(self.permitted, 'nobody')}."
            )


def _listed(components: Collection[str], otherwise: str) -> str:
    return " and ".join(sorted(components)) or otherwise
