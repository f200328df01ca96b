"""Certificates: whose is mounted where, who signs them, and that no pod holds the authority."""

import base64
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from deploy.certificates import COMPONENTS, Authority, Validity
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    all_pods,
    containers_of,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)
from understudy.serving.certificates import read_certificates

MODES: Final = ("chart", "certManager", "secrets")
ISSUER: Final = {"name": "ours", "kind": "ClusterIssuer", "group": "cert-manager.io"}
PREFIX: Final = "demo-understudy-tls"
FOLDER: Final = "/etc/understudy/tls"


def rendered(helm: Helm, mode: str, **more: object) -> list[Manifest]:
    values = {"tls.mode": mode, "tls.certManager.issuerRef": ISSUER, **more}
    return helm.render(values=values)


def decoded(secret: Manifest) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


def secrets(manifests: list[Manifest]) -> Mapping[str, Manifest]:
    return {
        one["metadata"]["name"].removeprefix(f"{PREFIX}-"): one
        for one in manifests
        if one["kind"] == "Secret" and one["metadata"]["name"].startswith(PREFIX)
    }


@pytest.fixture(scope="module")
def made(helm: Helm) -> list[Manifest]:
    """The chart with an authority of its own."""
    return helm.render([CHART / "ci" / "tls-values.yaml"])


def test_without_tls_there_are_no_certificates_and_no_port_of_probes(
    defaults: list[Manifest],
) -> None:
    assert not secrets(defaults)
    for container in service_containers(defaults):
        environment = environment_of(container)
        assert environment["UNDERSTUDY_SERVING_TLS_DIR"] == ""
        assert environment["UNDERSTUDY_SERVING_HEALTH_LISTEN"] == ""
        assert not [port for port in container["ports"] if "health" in port["name"]]


@pytest.mark.parametrize("mode", MODES)
def test_each_service_sees_its_own_certificate_and_no_other(helm: Helm, mode: str) -> None:
    found = 0
    for workload in workloads(rendered(helm, mode)):
        pod = pod_of(workload)
        volumes = {one["name"]: one for one in pod.get("volumes", [])}
        for container in containers_of(pod):
            mounts = [one for one in container["volumeMounts"] if one["name"].startswith("tls-")]
            if container["command"][0] != "python":
                assert not mounts
                continue
            [mount] = mounts
            secret = volumes[mount["name"]]["secret"]
            assert secret["secretName"] == f"{PREFIX}-{container['name']}"
            assert secret["defaultMode"] == 0o440
            assert mount["readOnly"]
            environment = environment_of(container)
            assert environment["UNDERSTUDY_SERVING_TLS_DIR"] == mount["mountPath"] == FOLDER
            found += 1
    assert found == 8, "six services, attention and kvstore in two pools"


def test_the_charts_certificates_are_what_services_take(
    made: list[Manifest], tmp_path: Path
) -> None:
    found = secrets(made)
    assert found.keys() == {*COMPONENTS, "authority"}
    for component in COMPONENTS:
        assert found[component]["type"] == "kubernetes.io/tls"
        for name, content in decoded(found[component]).items():
            (tmp_path / name).write_bytes(content)
        read = read_certificates(tmp_path, datetime.now(UTC))
        assert read.names == {f"{component}.demo.example.com"}
        own = x509.load_pem_x509_certificate(read.chain)
        own.verify_directly_issued_by(x509.load_pem_x509_certificate(read.authorities))
        usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        oids = {each.dotted_string for each in usages}
        assert oids >= {ssl.Purpose.SERVER_AUTH.oid, ssl.Purpose.CLIENT_AUTH.oid}


def test_certificates_and_their_authority_last_as_long_as_the_values_say(helm: Helm) -> None:
    found = secrets(
        rendered(helm, "chart", **{"tls.chart.days": 30, "tls.chart.authorityDays": 100})
    )
    lives = []
    for name in ("tls.crt", "ca.crt"):
        one = x509.load_pem_x509_certificate(decoded(found["router"])[name])
        lives.append((one.not_valid_after_utc - one.not_valid_before_utc).days)
    assert lives == [30, 100]


def test_no_pod_holds_the_authority(made: list[Manifest]) -> None:
    [key] = [name for name in decoded(secrets(made)["authority"]) if name.endswith(".key")]
    assert key == "current.key"
    for pod in all_pods(made):
        names = [one.get("secret", {}).get("secretName") for one in pod.get("volumes", [])]
        assert f"{PREFIX}-authority" not in names


def test_the_port_of_probes_is_in_no_service(made: list[Manifest]) -> None:
    for service in (one for one in made if one["kind"] == "Service"):
        assert not [one for one in service["spec"]["ports"] if "health" in str(one["targetPort"])]


def test_an_issuer_of_ones_own_signs_a_certificate_per_component(helm: Helm) -> None:
    manifests = rendered(helm, "certManager", **{"tls.domain": "eu.example.com"})
    assert not secrets(manifests)
    for component in COMPONENTS:
        spec = named(manifests, "Certificate", f"{PREFIX}-{component}")["spec"]
        assert spec["secretName"] == f"{PREFIX}-{component}"
        assert spec["dnsNames"] == [f"{component}.eu.example.com"]
        assert spec["issuerRef"] == ISSUER
        assert spec["usages"] == ["server auth", "client auth"]


def test_a_bundle_of_ones_own_is_what_services_trust(helm: Helm, tmp_path: Path) -> None:
    bundle = {"name": "trusted", "key": "all.pem"}
    manifests = rendered(helm, "certManager", **{"tls.certManager.trustBundle": bundle})
    now = datetime.now(UTC)
    former, new = (Authority.make(name, Validity.of(1, now)) for name in ("former", "new"))
    found = 0
    for workload in workloads(manifests):
        for volume in pod_of(workload).get("volumes", []):
            if not volume["name"].startswith("tls-"):
                continue
            component = volume["name"].removeprefix("tls-")
            chain, key = new.issue(f"{component}.understudy", Validity.of(1, now))
            held = {
                f"{PREFIX}-{component}": {"tls.crt": chain, "tls.key": key, "ca.crt": new.pem},
                "trusted": {"all.pem": former.pem + new.pem},
            }
            folder = tmp_path / f"{found}"
            folder.mkdir()
            assert volume["projected"]["defaultMode"] == 0o440
            for source in volume["projected"]["sources"]:
                [one] = source.values()
                for item in one["items"]:
                    (folder / item["path"]).write_bytes(held[one["name"]][item["key"]])
            read = read_certificates(folder, now)
            assert read.names == {f"{component}.understudy"}
            assert read.authorities == former.pem + new.pem
            found += 1
    assert found == 8, "six services, attention and kvstore in two pools"


def test_without_a_bundle_the_secrets_own_authority_is_trusted(helm: Helm) -> None:
    for mode in MODES:
        more = {} if mode == "certManager" else {"tls.certManager.trustBundle.name": "trusted"}
        for workload in workloads(rendered(helm, mode, **more)):
            for volume in pod_of(workload).get("volumes", []):
                assert "projected" not in volume


def test_secrets_of_ones_own_are_left_alone(helm: Helm) -> None:
    manifests = rendered(helm, "secrets")
    assert not secrets(manifests)
    assert not [one for one in manifests if one["kind"] == "Certificate"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tls.mode": "certManager"}, "name the Issuer that signs"),
        ({"tls.mode": "chart", "tls.chart.replace": "switch"}, 'upgrade with "trust" first'),
        ({"tls.mode": "on"}, "value must be one of"),
        ({"tls.mode": "chart", "tls.domain": "Not_a_name"}, "does not match pattern"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    helm: Helm, values: dict[str, object], said: str
) -> None:
    with pytest.raises(RenderError, match=said):
        helm.render(values=values)
