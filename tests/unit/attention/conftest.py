"""Fixtures of the attention worker's tests."""

import pytest

from tests.unit.attention.parts import FakeRunner


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()
