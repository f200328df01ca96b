"""Rules of scaling: what nobody could keep is refused where it is written down."""

import pytest

from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PartRules(0, 4), "min_replicas"),
        (lambda: PartRules(1, 4, gpus=-1), "gpus"),
        (lambda: PoolRules("a", PartRules(), tpot_s=0), "positive"),
        (lambda: PoolRules("a", PartRules(), utilisation=2), "utilisations"),
        (lambda: PoolRules("a", PartRules(), idle_s=0), "idle_s"),
        (lambda: ScalingRules((PoolRules("a", PartRules()),) * 2), "twice"),
        (lambda: ScalingRules((PoolRules("a", PartRules(gpus=4)),), max_gpus=3), "budgets"),
        (lambda: ScalingRules((), retry_s=-1), "negative"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
