"""The list of models of an engine: it names the context, or says nothing."""

from __future__ import annotations

import json

import pytest

from services.router.external.models import MAX_MODELS_BYTES, read_context
from services.router.external.port import EngineMisfit


def test_the_context_is_read_where_it_is_named() -> None:
    cards = [{"id": "a", "max_model_len": 512}, {"id": "b"}, {"id": "c", "max_model_len": "x"}]
    data = json.dumps({"data": cards}).encode()
    assert [read_context(data, name) for name in "abc"] == [512, 0, 0]


def test_a_missing_model_is_named_with_those_that_are_served() -> None:
    with pytest.raises(EngineMisfit, match=r"'b'; it serves: a\."):
        read_context(b'{"data":[{"id":"a"}]}', "b")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"data":5}', b'{"data":[5]}', b"\xff", b" " * (MAX_MODELS_BYTES + 1)]
)
def test_a_list_of_another_form_says_nothing(data: bytes) -> None:
    assert read_context(data, "a") == 0
