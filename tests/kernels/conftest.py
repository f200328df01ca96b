"""Kernels are loaded once; GPU tests say why they are skipped."""

from collections.abc import Iterator

import pytest
import torch

from understudy_kernels import load


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> Iterator[None]:
    load()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU: the GPU kernels were never run on one")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # a keyword may be a folder above
            item.add_marker(skip)
