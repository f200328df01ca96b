"""Each kind of source is asked in its own way, with its own credentials."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.unit.weights.conftest import FILES, FOLDER, sha, sums
from tests.unit.weights.store_server import StoreServer, serving
from understudy.errors import FailedPrecondition, Unauthenticated
from understudy.weights.credentials import Secret
from understudy.weights.fetching import Fetcher
from understudy.weights.oci import MANIFEST, TITLE, RegistrySigner
from understudy.weights.settings import ModelSource
from understudy.weights.signing import AccessKey, signed_headers
from understudy.weights.tokens import GoogleToken
from understudy.weights.web import Document, Signer, Web, bearer, unsigned

Make = Callable[..., ModelSource]
B = {"b": FILES["b"]}


def _secret(folder: Path, **keys: str) -> Path:
    folder.mkdir()
    for key, value in keys.items():
        (folder / key.replace("_", "-")).write_text(f"{value}\n")
    return folder


def test_the_signature_is_that_of_the_published_example() -> None:
    # AWS, "Authenticating Requests: Using the Authorization Header", GET Object.
    key = AccessKey("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    url = "https://examplebucket.s3.amazonaws.com/test.txt"
    now = datetime(2013, 5, 24, tzinfo=UTC)
    found = signed_headers(url, {"range": "bytes=0-9"}, key, region="us-east-1", now=now)
    assert found["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_a_bucket_is_read_with_the_keys_of_the_secret(
    fetcher: Fetcher, model: Make, server: StoreServer, tmp_path: Path
) -> None:
    secret = _secret(
        tmp_path / "s", access_key_id="AKIA", secret_access_key="hush", session_token="temporary"
    )
    fetcher.fetch(model(credentials=secret, region="eu-central-1", sums=sums(B)))
    [(_, headers)] = server.asked
    assert "Credential=AKIA/" in headers["authorization"]
    assert "/eu-central-1/s3/aws4_request" in headers["authorization"]
    assert headers["x-amz-security-token"] == "temporary"
    assert "hush" not in json.dumps(headers)


def test_a_secret_without_its_key_is_named(fetcher: Fetcher, model: Make, tmp_path: Path) -> None:
    secret = _secret(tmp_path / "s", access_key_id="AKIA")
    with pytest.raises(FailedPrecondition, match="lacks the key secret-access-key"):
        fetcher.fetch(model(credentials=secret))


def test_the_hub_is_read_at_a_revision_with_its_token_and_the_storage_behind_it_without(
    fetcher: Fetcher, model: Make, server: StoreServer, tmp_path: Path
) -> None:
    path = "/owner/name/resolve/abc123/gguf/b"
    with serving(StoreServer(files={"/blob": FILES["b"]})) as storage:
        server.files = {path: b""}
        server.faults = {path: [("redirect", f"{storage.address}/blob?signature=x")]}
        secret = _secret(tmp_path / "s", token="hf_x")
        digest = f"sha256:{sha(FILES['b'])}"
        source = "hub://owner/name@abc123/gguf/b"
        fetcher.fetch(model(source=source, sums="", digest=digest, credentials=secret))
        assert server.asked[0][1]["authorization"] == "Bearer hf_x"
        assert "authorization" not in storage.asked[0][1]


def test_google_is_asked_with_a_token_for_the_service_account(
    fetcher: Fetcher, model: Make, server: StoreServer, tmp_path: Path
) -> None:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    key = {
        "client_email": "reader@project",
        "token_uri": f"{server.address}/token",
        "private_key": pem,
    }
    server.posts["/token"] = json.dumps({"access_token": "ya29", "expires_in": 3600}).encode()
    secret = _secret(tmp_path / "s")
    (secret / "service-account.json").write_text(json.dumps(key))
    fetcher.fetch(model(source="gs://bucket/llm/", sums=sums(FILES), credentials=secret))
    assert {headers["authorization"] for _, headers in server.asked} == {"Bearer ya29"}
    [form] = server.forms
    head, claims, signature = parse_qs(form.decode())["assertion"][0].split(".")

    def decoded(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    private.public_key().verify(
        decoded(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256()
    )
    said = json.loads(decoded(claims))
    assert (said["iss"], said["exp"] - said["iat"]) == ("reader@project", 3600)
    assert said["scope"].endswith("devstorage.read_only")


def test_a_key_that_is_none_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        GoogleToken(Web(), json.dumps({"private_key": "hush"}))
    assert "hush" not in caught.value.message


def _artifact(server: StoreServer, files: dict[str, bytes], **changes: object) -> str:
    layers = [
        {"digest": f"sha256:{sha(content)}", "size": len(content), "annotations": {TITLE: name}}
        for name, content in files.items()
    ]
    manifest = json.dumps({"mediaType": MANIFEST, "layers": layers, **changes}).encode()
    digest = f"sha256:{sha(manifest)}"
    blobs = {f"/v2/team/llm/blobs/sha256:{sha(content)}": content for content in files.values()}
    server.files = {f"/v2/team/llm/manifests/{digest}": manifest, **blobs}
    return digest


def test_an_artifact_is_read_by_the_digest_of_its_manifest(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    digest = _artifact(server, FILES)
    fetcher.fetch(model(source=f"oci://registry/team/llm@{digest}", sums="", digest=digest))
    assert (volume / FOLDER / "shards/model-1.safetensors").read_bytes() == (
        FILES["shards/model-1.safetensors"]
    )


def test_a_registry_is_shown_a_token_that_its_realm_gives_for_user_and_password(
    fetcher: Fetcher, model: Make, server: StoreServer, tmp_path: Path
) -> None:
    with serving(StoreServer(files={"/token": b'{"token": "t0"}'})) as realm:
        digest = _artifact(server, FILES)
        server.needed = {"authorization": "Bearer t0"}
        server.challenge = (
            f'Bearer realm="{realm.address}/token",service="r",scope="repository:team/llm:pull"'
        )
        secret = _secret(tmp_path / "s", username="u", password="p")
        source = "oci://registry:5000/team/llm:v1"
        fetcher.fetch(model(source=source, sums="", digest=digest, credentials=secret))
        [(asked, headers)] = realm.asked
        assert parse_qs(asked.partition("?")[2]) == {
            "service": ["r"],
            "scope": ["repository:team/llm:pull"],
        }
        assert base64.b64decode(headers["authorization"].partition(" ")[2]) == b"u:p"


@pytest.mark.parametrize(
    ("files", "changes", "words"),
    [
        (FILES, {"layers": None}, "that of an index"),
        (FILES, {"layers": [{"digest": f"sha256:{'0' * 64}"}]}, "not as a container image"),
        ({"../x": b"x"}, {}, "without '..'"),
    ],
)
def test_a_manifest_that_holds_no_files_is_refused(
    fetcher: Fetcher, model: Make, server: StoreServer,
    files: dict[str, bytes], changes: dict[str, object], words: str,
) -> None:  # fmt: skip
    digest = _artifact(server, files, **changes)
    with pytest.raises(FailedPrecondition, match=words):
        fetcher.fetch(model(source="oci://registry/team/llm", sums="", digest=digest))


def test_a_manifest_of_another_digest_is_refused(
    fetcher: Fetcher, model: Make, server: StoreServer
) -> None:
    digest = _artifact(server, FILES)
    server.files[f"/v2/team/llm/manifests/{digest}"] += b" "
    with pytest.raises(FailedPrecondition, match="not what was asked for"):
        fetcher.fetch(model(source="oci://registry/team/llm", sums="", digest=digest))


def test_a_registry_that_wants_a_password_is_told_apart_from_one_without_the_artifact(
    fetcher: Fetcher, model: Make, server: StoreServer, tmp_path: Path
) -> None:
    digest = _artifact(server, FILES)
    server.needed, server.challenge = {"authorization": "never"}, 'Basic realm="r"'
    secret = _secret(tmp_path / "s", username="u", password="p")
    with pytest.raises(Unauthenticated, match="may not be read"):
        fetcher.fetch(model(source="oci://r/team/llm", sums="", digest=digest, credentials=secret))


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "ftp://host/x"},
        {"source": "s3://"},
        {"source": "s3://bucket"},
        {"source": "s3://bucket/../other/"},
        {"source": "hub://owner/name/file"},
        {"source": "file://relative/"},
        {"source": "file:///a/../b/"},
        {"source": "oci://registry/Team"},
        {"endpoint": "ftp://host"},
        {"endpoint": "host"},
        {"endpoint": "http://["},
        {"source": "oci://registry/team/llm", "endpoint": "http://host:x", "sums": ""},
    ],
)
def test_a_source_that_is_none_is_refused_before_anything_is_asked(
    fetcher: Fetcher, model: Make, server: StoreServer, changes: dict[str, str]
) -> None:
    with pytest.raises(FailedPrecondition):
        fetcher.fetch(model(**changes))
    assert server.asked == []


def test_credentials_do_not_leave_in_clear_but_on_this_machine() -> None:
    sign = bearer("hush")
    assert sign("http://127.0.0.1:9/x", {})["authorization"] == "Bearer hush"
    with pytest.raises(FailedPrecondition, match="without TLS") as caught:
        sign("http://hub.example/x", {})
    assert "hush" not in caught.value.message


class _Asked(Web):
    """Remembers what would be asked, and asks nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def document(self, url: str, sign: Signer = unsigned, accept: str = "*/*") -> Document:
        self.urls.append(url)
        return Document(200, {}, b'{"token": "t"}')


@pytest.mark.parametrize("kind", ["Bearer", "Basic"])
def test_a_challenge_that_came_in_clear_gets_no_password(tmp_path: Path, kind: str) -> None:
    web, secret = _Asked(), Secret(_secret(tmp_path / "s", username="u", password="hush"))
    challenge, url = f'{kind} realm="https://thief.example/token"', "http://registry.example/v2/x"
    with pytest.raises(FailedPrecondition, match=r"not sent to registry\.example without TLS"):
        RegistrySigner(web, secret).answer(challenge, url)
    assert web.urls == []
    if kind == "Bearer":
        RegistrySigner(web, Secret(None)).answer(challenge, url)
        assert web.urls == ["https://thief.example/token?"]


def test_a_realm_without_tls_gets_no_password(tmp_path: Path) -> None:
    web, secret = _Asked(), Secret(_secret(tmp_path / "s", username="u", password="hush"))
    for realm in ("http://realm.example/token", "http://[", "ftp://realm.example"):
        with pytest.raises(FailedPrecondition):
            RegistrySigner(web, secret).answer(f'Bearer realm="{realm}"', "https://r.example/v2/x")
    assert web.urls == []


def test_redirects_have_an_end(fetcher: Fetcher, model: Make, server: StoreServer) -> None:
    path = "/bucket/llm/b"
    server.faults = {path: [("redirect", path)] * 10}
    with pytest.raises(FailedPrecondition, match="redirects more than"):
        fetcher.fetch(model(sums=sums(B)))
