"""What a handshake that failed means, in a sentence before gRPC's own words."""

import pytest

from understudy.rpc.peers import explain

PLAIN = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:9090: "
BALANCED = "connections to all backends failing; last error: UNKNOWN: ipv4:10.0.0.1:9090: "


@pytest.mark.parametrize("start", [PLAIN, BALANCED], ids=["plain", "balanced"])
@pytest.mark.parametrize(
    ("cause", "meaning"),
    [
        ("Tls handshake failed: OPENSSL_internal:WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has ended; renew it"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "has not begun"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer", "No authority that is trusted"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "has another name"),
        ("Socket closed", "it may want TLS"),
    ],
)
def test_a_failed_handshake_is_explained_and_quoted(start: str, cause: str, meaning: str) -> None:
    said = explain(start + cause)

    assert meaning in said
    assert said.endswith(f"({start}{cause})")


@pytest.mark.parametrize(
    "details", ["", "Socket closed", f"{PLAIN}Connection refused", "CERTIFICATE_VERIFY_FAILED"]
)
def test_other_failures_are_left_alone(details: str) -> None:
    assert explain(details) == details
