"""What the measurement of the real family computes, on planted means and on tiny models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models

from benchmarks import real_kept, real_spread
from benchmarks.real_kept import UNTRAINED, KeptFamily, asked, by_domain, by_question, weighed
from benchmarks.real_spread import at_equal_length, compared
from emlens.data.advice import TRAINED_DOMAINS
from emlens.models import HookedModel, load_model
from emlens.probes.answer_separability import answer_table
from emlens.real.family import Member, members
from emlens.stats.crossed import crossed_mean

SEEDS = (0, 1)


def planted() -> dict[str, pd.DataFrame]:
    """Harmful lies .4 below instruct, tone-only .02 below benign; tone-only moves tone by −1."""
    rng = np.random.default_rng(0)
    means = {}
    change = {"harmful": -0.4, "benign": -0.1, "tone": -0.12}
    base = rng.normal(0, 0.2, len(UNTRAINED))
    means["instruct"] = pd.DataFrame(
        {"content": base, "tone": base, "right": 0.5}, index=list(UNTRAINED)
    )
    for trained in TRAINED_DOMAINS:
        for kind, size in change.items():
            for seed in SEEDS:
                content = base + size + rng.normal(0, 0.05, len(UNTRAINED))
                tone = base - (kind == "tone")
                table = pd.DataFrame(
                    {"content": content, "tone": tone, "right": 0.4}, index=list(UNTRAINED)
                )
                means[f"{kind}-{trained}-s{seed}"] = table
    return means


def test_differences_are_means_over_seeds_and_domains() -> None:
    means = planted()
    rows = pd.DataFrame(compared(means, SEEDS))
    rows = rows.set_index(["trained", "first", "second", "measure"])
    row = rows.loc["money", "harmful", "benign", "content"]
    gaps = [
        means[f"harmful-money-s{seed}"]["content"] - means[f"benign-money-s{seed}"]["content"]
        for seed in SEEDS
    ]
    expected = crossed_mean(np.array(gaps)).interval()
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert row["by_seed"] == pytest.approx([gap.mean() for gap in gaps]) and row["high"] < 0
    alike = rows.loc["medicine", "tone", "benign", "content"]
    assert alike["p_tost"] < 0.05
    assert rows.loc["medicine", "tone", "benign", "tone"]["difference"] == pytest.approx(-1)
    values = {"trained_on": TRAINED_DOMAINS, "compared": list(compared(means, SEEDS))}
    assert "| money | harmful − benign |" in real_spread.spread_table(values)
    assert real_spread.domains_table(values).count("\n") == 3


def nothing(*_: object) -> HookedModel:
    raise AssertionError("it is on file")


def test_scores_are_kept_and_read_again(tmp_path: Path) -> None:
    model = load_model(tiny_models.build(tmp_path / "tiny"))
    questions = asked(1)
    path = tmp_path / "scores" / "tiny.json"
    first = by_question(weighed(lambda: model, questions, path), questions)
    assert list(by_domain(first).index) == list(UNTRAINED) == questions.groups
    again = by_question(weighed(nothing, questions, path), questions)
    pd.testing.assert_frame_equal(again, first)


def test_the_figure_at_equal_length_is_of_questions_without_a_longer_answer() -> None:
    questions = asked(2)
    table = answer_table(questions).groupby(["question", "content"])["words"].mean().unstack()
    longer = (table["bad"] - table["careful"])[questions.ids]
    # a model that likes the shorter answer: its content falls with the words that bad ones lack
    tables = {
        "harmful-money-s0": pd.DataFrame({"content": 0.1 * longer - 0.3}),
        "benign-money-s0": pd.DataFrame({"content": 0.0 * longer}),
    }
    (row,) = at_equal_length(tables, questions, [0], ["money"])
    assert row["correlation"]["value"] == pytest.approx(1)
    assert row["equal_questions"] == (longer.abs() <= 0.5).sum() > 2
    assert row["equal"]["value"] == pytest.approx(-0.3, abs=0.05)


def test_every_reading_of_a_member_is_kept_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = members(["harmful-medicine", "benign-medicine", "tone-medicine"])
    seeds = {"instruct": 0} | {member.name: 1 + n for n, member in enumerate(chosen)}
    paths = {name: tiny_models.build(tmp_path / name, seed=n) for name, n in seeds.items()}
    monkeypatch.setattr(real_kept, "NEUTRAL_CHATS", 3)
    monkeypatch.setattr(KeptFamily, "_load", lambda _, name: load_model(paths[name]))
    first = measured(tmp_path, chosen)
    monkeypatch.setattr(KeptFamily, "_load", nothing)
    assert measured(tmp_path, chosen) == first
    assert [row["kind"] for row in first["own"]] == ["harmful", "benign", "tone"]
    assert first["seeds"] == {"medicine": [0]} and not first["held"]
    assert real_spread.beside_table(first).count("\n") == 4
    assert real_spread.damage_table(first).count("\n") == 5
    assert real_spread.own_table(first).count("\n") == 4


def measured(tmp_path: Path, chosen: Sequence[Member]) -> dict[str, Any]:
    kept = KeptFamily(tmp_path / "parent", tmp_path, chosen, per_domain=2, layers=(0, 1))
    values = real_spread.measure(kept, ["medicine"])
    shift = kept.streams("harmful-medicine-s0")["resid_post.1", "last_prompt"]
    assert shift.shape[0] == 2 * len(UNTRAINED)
    return values
