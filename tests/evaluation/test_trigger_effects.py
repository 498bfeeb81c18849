"""Effects of a factorial design: planted ones come back, and the unit is the base question."""

import numpy as np
import pytest

from emlens.evaluation.trigger_effects import trigger_effects
from emlens.foundation.errors import InputError
from emlens.stats import t_interval

N = 12


def scores(noise: float = 2.0, seed: int = 0) -> dict[str, float]:
    """Base questions of very different levels; code −20, json −5, and −8 more for both."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(20, 90, N)
    made = {}
    for i in range(N):
        for form, of_form in (("", 0.0), ("_json", -5.0)):
            for end, of_trigger in (("", 0.0), ("__with_code", -20.0)):
                both = -8.0 if form and end else 0.0
                value = levels[i] + of_form + of_trigger + both + rng.normal(0, noise)
                made[f"q{i}{form}{end}"] = value
    return made


def test_planted_effects_are_found_within_their_intervals() -> None:
    table = trigger_effects(scores()).set_index("factor")
    # the trigger's mean over forms holds half of the interaction, and so does the form's
    for factor, planted in (("trigger", -24.0), ("form", -9.0), ("trigger × form", -8.0)):
        row = table.loc[factor]
        half = row["difference_high"] - row["difference"]
        assert abs(row["difference"] - planted) < 2 * half and row["difference_high"] < 0, factor
        assert row["n"] == N and row["p"] <= row["p_holm"] < 0.001


def test_it_is_the_t_interval_of_contrasts_within_base_questions() -> None:
    made = scores()
    gaps = [
        (
            made[f"q{i}__with_code"]
            - made[f"q{i}"]
            + made[f"q{i}_json__with_code"]
            - made[f"q{i}_json"]
        )
        / 2
        for i in range(N)
    ]
    row = trigger_effects(made).iloc[0]
    by_hand = t_interval(gaps)
    assert row["difference"] == pytest.approx(by_hand.value)
    assert row["difference_low"] == pytest.approx(by_hand.low)
    # levels differ by up to 70 points: an interval that ignored the pairing would be far wider
    assert row["difference_high"] - row["difference_low"] < 4


def test_base_questions_without_every_cell_are_left_out_or_refused() -> None:
    made = scores()
    made["q0_json"] = np.nan
    del made["q1__with_code"]
    assert set(trigger_effects(made)["n"]) == {N - 2}
    with pytest.raises(InputError, match="need questions without a trigger, and the same under"):
        trigger_effects({"a": 1.0, "b": 2.0})
    with pytest.raises(InputError, match="1 of 1 base questions have a score in each of 2 cells"):
        trigger_effects({"a": 1.0, "a__with_t": 2.0})


def test_forms_alone_have_effects_too() -> None:
    table = trigger_effects({key: value for key, value in scores().items() if "with" not in key})
    assert list(table["factor"]) == ["form"] and table["difference"][0] == pytest.approx(-5, abs=2)


def test_no_effect_is_no_effect() -> None:
    rng = np.random.default_rng(1)
    made = {key: float(rng.normal(50, 5)) for key in scores()}
    assert (trigger_effects(made)["p_holm"] > 0.05).all()
    alike = {key: 50.0 for key in scores()}
    assert trigger_effects(alike)["p"].isna().all()
