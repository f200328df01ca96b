"""Starting, finding and ending clusters, as far as it needs no cluster."""

import os
from pathlib import Path

import pytest
from cryptography import x509

from deploy.cluster.certificates import make_authority, make_certificate
from deploy.cluster.inside import environment
from deploy.cluster.layout import Layout
from deploy.cluster.running import (
    LOCK,
    RunError,
    claim_state,
    find_cluster,
    inside_command,
    inside_environment,
)


def test_a_folder_with_other_things_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(RunError, match="holds something else"):
        claim_state(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_is_emptied_for_the_next_cluster_and_held_by_one(tmp_path: Path) -> None:
    state = tmp_path / "state"
    lock = claim_state(state)
    (state / "etcd").mkdir()
    with pytest.raises(RunError, match=r"runs in .+ already"):
        claim_state(state)
    assert (state / "etcd").exists()
    os.close(lock)
    os.close(claim_state(state))
    assert [entry.name for entry in state.iterdir()] == [LOCK]
    assert state.stat().st_mode & 0o077 == 0


def test_a_number_that_another_process_has_now_is_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()} 1")
    with pytest.raises(RunError, match="no cluster runs"):
        find_cluster(tmp_path)


def test_everything_runs_in_namespaces_that_die_with_the_driver(tmp_path: Path) -> None:
    command = inside_command(tmp_path, ["pytest"])
    assert {"--user", "--net", "--mount", "--pid", "--kill-child=SIGKILL"} <= set(command)
    assert command[-2:] == [str(tmp_path), "pytest"]


def test_the_tools_come_first_and_proxies_are_left_out(tmp_path: Path) -> None:
    outer = inside_environment([tmp_path], {"PATH": "/bin", "https_proxy": "http://p"})
    inner = environment(Layout(tmp_path), outer)
    assert inner["PATH"].startswith(f"{tmp_path}:")
    assert "https_proxy" not in inner
    assert inner["KUBECONFIG"] == str(tmp_path / "kubeconfig")


def test_certificates_are_signed_by_their_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "ca")
    make_certificate(
        tmp_path, "server", authority, common_name="s", addresses=["10.0.0.1"], host_names=["h"]
    )
    make_certificate(tmp_path, "client", authority, common_name="c", group="system:masters")
    server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    client = x509.load_pem_x509_certificate((tmp_path / "client.crt").read_bytes())
    for certificate in (server, client):
        certificate.verify_directly_issued_by(authority.certificate)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["h"]
    assert "O=system:masters" in client.subject.rfc4514_string()
    assert (tmp_path / "client.key").stat().st_mode & 0o077 == 0
