"""TLS of the HTTP edge, with certificates that change while it runs."""

from __future__ import annotations

import os
import ssl

from understudy.serving import Identity
from understudy.serving.certificates import Certificates


def server_context(identity: Identity) -> ssl.SSLContext:
    """Return a context whose handshakes use the certificates of their time."""
    known = identity.current()
    serving = _context(known)

    def choose(connection: ssl.SSLObject, name: str | None, former: ssl.SSLContext) -> None:  # noqa: ARG001
        nonlocal known, serving
        current = identity.current()
        if current is not known:
            known, serving = current, _context(current)
        connection.context = serving

    listening = _context(known)
    listening.sni_callback = choose  # called at each handshake, with a name or without
    return listening


def _context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # `ssl` reads files only; these bytes were checked and must not be read from a folder again.
    # The file has no name and is gone with its descriptor, so the key reaches no disk.
    with open(os.memfd_create("certificates"), "wb") as file:  # noqa: PTH123  # a descriptor
        file.write(certificates.chain + b"\n" + certificates.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
