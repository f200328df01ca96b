"""Expert workers and a controller that are stopped after the test."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import torch
from torch import Tensor

from tests.contract.experts.parts import Fleet


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


@pytest.fixture
def tokens() -> Tensor:
    return torch.arange(11) * 7 % 97
