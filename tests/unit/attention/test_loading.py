"""What `auto` stands for, resolved once."""

import pytest

from services.attention.loading import resolve_kv_dtype
from services.attention.settings import AttentionSettings, KvDtype
from understudy.model.decoder import Compute


@pytest.mark.parametrize(
    ("wanted", "compute", "resolved"),
    [
        ("auto", "fast", "float16"),
        ("auto", "exact", "float32"),
        ("auto", "reference", "float32"),
        ("bfloat16", "fast", "bfloat16"),
        ("float16", "exact", "float16"),
    ],
)
def test_keys_and_values_take_16_bits_by_themselves_only_in_fast(
    wanted: KvDtype, compute: Compute, resolved: KvDtype
):
    settings = AttentionSettings(model="smollm2", model_name="smollm2", kv_dtype=wanted)
    assert resolve_kv_dtype(settings, compute).kv_dtype == resolved
