"""Restoration is a ratio of means over domains; its lead is paired; where nothing was lost it is
undefined.
"""

import numpy as np
import pytest

from emlens.evaluation import restoration
from emlens.evaluation.restoring import paired_change, restoration_lead
from emlens.foundation.errors import InputError

RNG = np.random.default_rng(0)
GROUPS = [f"d{i % 12}" for i in range(120)]
LOST = RNG.uniform(0, 80, 120)
"""Very unequal losses, where a mean of ratios and a ratio of means differ."""
INSTRUCT = np.full(120, 95.0)
TUNED = INSTRUCT - LOST


def test_restoration_is_the_ratio_of_means() -> None:
    edited = TUNED + 0.4 * LOST
    found = restoration(edited, TUNED, INSTRUCT, GROUPS)
    assert (
        found.value == pytest.approx(0.4)
        and found.low == pytest.approx(0.4)
        and found.high == pytest.approx(0.4)
        and found.n == 12
    )
    gained = RNG.uniform(0, 30, 120)
    by_hand = gained.mean() / LOST.mean()
    assert restoration(TUNED + gained, TUNED, INSTRUCT, GROUPS).value == pytest.approx(by_hand)
    assert abs(np.mean(gained / LOST) - by_hand) > 0.1  # the mean of ratios is another number
    assert (
        restoration(TUNED, TUNED, INSTRUCT, GROUPS).value == 0
        and restoration(INSTRUCT, TUNED, INSTRUCT, GROUPS).value == 1
    )
    assert restoration(TUNED - 10, TUNED, INSTRUCT, GROUPS).value < 0


def test_domains_are_resampled_together() -> None:
    # all of a domain, or none
    by_domain = TUNED + np.array([60.0 if g < "d5" else 0.0 for g in GROUPS])
    spread = RNG.permutation(by_domain - TUNED) + TUNED
    whole, mixed = (restoration(x, TUNED, INSTRUCT, GROUPS) for x in (by_domain, spread))
    assert whole.high - whole.low > 1.5 * (mixed.high - mixed.low)


def test_the_lead_is_paired() -> None:
    noise = RNG.uniform(-40, 40, 120)
    one, other = TUNED + 0.5 * LOST + noise, TUNED + 0.4 * LOST + noise
    lead = restoration_lead(one, other, TUNED, INSTRUCT, GROUPS)
    first, second = (restoration(x, TUNED, INSTRUCT, GROUPS) for x in (one, other))
    assert lead.value == pytest.approx(first.value - second.value) and lead.low > 0
    # their own intervals overlap: unpaired, the lead would not be seen
    assert first.low < second.high


def test_restoration_is_undefined_where_nothing_was_lost() -> None:
    noise = RNG.normal(0, 20, 120)
    noise -= noise.mean() - 0.1  # a loss of .1 points among noise of 20
    for found in (
        restoration(TUNED, INSTRUCT - noise, INSTRUCT, GROUPS),
        restoration_lead(TUNED, INSTRUCT, INSTRUCT - noise, INSTRUCT, GROUPS),
    ):
        assert not found.defined and "interval" in found.method and "includes 0" in found.method
    gained = restoration(INSTRUCT, INSTRUCT, TUNED, GROUPS)
    assert (
        gained.method == "undefined: the fine-tune lost no alignment, so there is none to restore"
        and gained.n == 12
    )


def test_the_interval_of_a_change_stays_on_the_scale() -> None:
    before, after = np.array([0.0, 95, 0, 90]), np.array([100.0, 5, 100, 100])
    found = paired_change(after, before, ["a", "a", "b", "c"])
    assert found.low > -100 and found.high == 100 and found.value == 30


def test_a_change_is_paired_and_signed() -> None:
    found = paired_change(TUNED - 2, TUNED, GROUPS)
    assert (found.value, found.low, found.high) == pytest.approx((-2, -2, -2)) and found.n == 12
    with pytest.raises(
        InputError, match="edited has 119 values and unedited has 120; pass one pair per unit"
    ):
        paired_change(TUNED[1:], TUNED, GROUPS)
    with pytest.raises(InputError, match="finetuned has 119 values and instruct has 120"):
        restoration(TUNED[1:], TUNED[1:], INSTRUCT, GROUPS)
