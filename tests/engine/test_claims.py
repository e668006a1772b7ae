import math

import pytest

from cambrian.engine.claims import Arm, Claim, Condition, claim_hash, judge
from cambrian.errors import ConfigError


def claim(**changes):
    base = dict(
        name="c", statement="s", metric="m", direction="higher", margin=2.0, paper="p",
        arms={"new": Arm(), "old": Arm({"k": 0}), "other": Arm({"k": 1})}, system="new", baselines=("old",), sabotage=Arm({"k": 0}),
    )  # fmt: skip
    return Claim(**{**base, **changes})


def metrics(new, old, other=None):
    columns = {"new": new, "old": old, "other": other or old}
    return {arm: [{"m": float(v)} for v in values] for arm, values in columns.items()}


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ([5, 6, 7], [1, 2, 3], "holds"),
        ([2, 3, 4], [1, 2, 3], "smaller"),
        ([1, 2, 3], [2, 3, 4], "fails"),
        ([1, 2, 3], [1, 2, 3], "fails"),
        ([9, 0, 9], [1, 5, 1], "inconclusive"),
        ([math.nan, 6, 7], [1, 2, 3], "inconclusive"),
    ],
)
def test_verdicts_of_a_difference(new, old, verdict):
    assert judge(claim(), metrics(new, old)).verdict == verdict


@pytest.mark.parametrize(
    ("direction", "margin", "new", "old", "verdict"),
    [
        ("lower", 0.7, [1, 1, 1], [2, 2, 2], "holds"),
        ("lower", 0.7, [1.8, 1.8, 1.7], [2, 2, 2], "smaller"),
        ("lower", 0.7, [3, 3, 3], [2, 2, 2], "fails"),
        ("higher", 2.0, [5, 4.5, 5], [2, 2, 2], "holds"),
        ("higher", 2.0, [3, 3, 3.1], [2, 2, 2], "smaller"),
    ],
)
def test_verdicts_of_a_ratio(direction, margin, new, old, verdict):
    ratio = claim(compare="ratio", direction=direction, margin=margin)
    assert judge(ratio, metrics(new, old)).verdict == verdict


def test_direction_lower_and_the_best_baseline_of_each_seed():
    lower = claim(direction="lower", baselines=("old", "other"), margin=1.0)
    judged = judge(lower, metrics([1, 1, 1], [9, 3, 9], [3, 9, 4]))
    assert judged.effects == [2.0, 2.0, 3.0]
    assert judged.verdict == "holds"


def test_an_unmet_condition_takes_holds_away():
    strict = claim(conditions=(Condition("new", "m", ">=", 6.5),))
    judged = judge(strict, metrics([5, 6, 7], [1, 2, 3]))
    assert judged.verdict == "smaller" and judged.unmet == ["m of new >= 6.5"]


def test_hash_changes_with_margin_seeds_and_configuration():
    base = claim_hash("x", claim(), {"new": {"steps": 1}})
    assert base == claim_hash("x", claim(), {"new": {"steps": 1}})
    others = [claim_hash("x", claim(margin=2.1), {"new": {"steps": 1}}), claim_hash("x", claim(seeds=(0,)), {"new": {"steps": 1}}),
              claim_hash("x", claim(), {"new": {"steps": 2}})]  # fmt: skip
    assert len({base, *others}) == 4


def test_claims_must_name_their_arms():
    with pytest.raises(ConfigError, match="does not define"):
        claim(baselines=("missing",))


def test_a_condition_on_a_metric_that_an_arm_lacks_is_named():
    strict = claim(conditions=(Condition("new", "speed", ">=", 1.0),))
    with pytest.raises(ConfigError, match=r"speed of new >= 1.*it gives: m"):
        judge(strict, metrics([5, 6, 7], [1, 2, 3]))
