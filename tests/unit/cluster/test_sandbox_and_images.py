"""What a runtime makes of a pod's specification, and what stands in for images."""

from typing import Any

import pytest

from deploy.cluster.agent.environment import ConfigError, ImageError
from deploy.cluster.agent.images import repository_name, standard_images
from deploy.cluster.agent.sandbox import (
    find_image,
    hosts,
    keeps_capabilities,
    names_of,
    resolver,
    user_of,
)

POD: dict[str, Any] = {"metadata": {"name": "w-0", "namespace": "n"}, "spec": {}}


@pytest.mark.parametrize(
    "reference",
    ["b", "b:1", "a/b", "r.example:5000/a/b:1", f"r.example/b@sha256:{'0' * 64}", "x/b:1@sha256:0"],
)
def test_the_repository_names_the_image(reference: str) -> None:
    assert repository_name(reference) == "b"


def test_an_unknown_image_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ImageError, match="image 'nginx:1'; known are: busybox, understudy, unders"):
        find_image("nginx:1", standard_images({}))


def test_every_image_of_our_services_is_the_checkout() -> None:
    images = standard_images({})
    for target in ("router", "worker", "distiller"):
        assert find_image(f"r.example/understudy-{target}:1", images) == images["understudy"]


def test_images_are_shown_read_only() -> None:
    for image in standard_images({}).values():
        assert all(mount["is_read_only"] for mount in image.mounts)


def test_a_pod_of_a_set_knows_its_full_name() -> None:
    pod = {**POD, "spec": {"hostname": "w-0", "subdomain": "w"}}
    assert names_of(pod) == ["w-0.w.n.svc.cluster.local", "w-0"]
    assert "10.0.0.1\tw-0.w.n.svc.cluster.local\tw-0" in hosts(names_of(pod), "10.0.0.1", [])


def test_short_names_are_searched_in_the_own_namespace_first() -> None:
    assert "search n.svc.cluster.local svc.cluster.local cluster.local" in resolver("n")


def test_the_containers_own_user_wins() -> None:
    pod = {**POD, "spec": {"securityContext": {"runAsUser": 5, "runAsGroup": 6}}}
    assert user_of(pod, {}) == (5, 6)
    assert user_of(pod, {"securityContext": {"runAsUser": 7}}) == (7, 6)


def test_root_is_refused_where_the_pod_forbids_it() -> None:
    with pytest.raises(ConfigError, match="runAsNonRoot"):
        user_of({**POD, "spec": {"securityContext": {"runAsNonRoot": True}}}, {})
    with pytest.raises(ConfigError, match="privileged"):
        user_of(POD, {"securityContext": {"privileged": True}})


def test_only_root_that_drops_nothing_keeps_capabilities() -> None:
    dropping = {"securityContext": {"capabilities": {"drop": ["ALL"]}}}
    assert keeps_capabilities({}, 0)
    assert not keeps_capabilities({}, 10001)
    assert not keeps_capabilities(dropping, 0)
