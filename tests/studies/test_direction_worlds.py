"""Miniatures of the measurement of directions over worlds: its figures are those of the study's
tables, and its page shows them.
"""

from typing import Any

import numpy as np
import pytest

from benchmarks import direction_transfer
from benchmarks.records import EVIDENCE
from emlens.foundation.files import read_json
from emlens.organisms.loading import ASSETS


def test_figures_are_those_of_the_tables(finished: Any) -> None:
    tables = {**finished.result.tables, "findings": finished.result.table}
    tables["transfer"] = tables["transfer"].assign(
        restoration=[0.9, 0.1, 0.3, 0.5], coherent_change=[-1.0, -20.0, 2.0, -3.0]
    )
    found = direction_transfer.figures(tables)
    assert (
        found["own_median"] == pytest.approx(0.7)
        and found["other_domain_median"] == pytest.approx(0.2)
        and np.isnan(found["same_domain_median"])
    )
    assert found["coherence_loss_largest"] == pytest.approx(0.03) and found[
        "coherence_loss_any_pair"
    ] == pytest.approx(0.2)
    arms = tables["arms"][tables["arms"]["role"] == direction_transfer.CHOSEN]
    for on in ("instruct", "benign"):
        changes = arms[arms["arm"] == f"{on}, direction"]["aligned_change"]
        assert len(changes) == 2 and found[f"{on}_largest_change"] == pytest.approx(
            changes.abs().max() / 100
        )
        assert found["unharmed_largest_bound"] >= found[f"{on}_largest_change"]
    assert set(found) == {key for _, key, _, _ in direction_transfer.GOALS} and found[
        "beats_every_control"
    ] in (0, 0.5, 1)


def test_an_extraction_is_tried_on_every_pair() -> None:
    [row] = direction_transfer.tried(
        ASSETS / "planted", names=("medicine-r8", "finance-r8"), layers=(2,), most=1
    )
    assert (row["extraction"], row["read"], row["removed"]) == ("mean", "layer 2", "affine, writes")
    assert 0.2 < row["other_domain"] < row["own"] < 1 and row["instruct_change_worst"] < 0


def test_with_the_last_block_left_alone_a_readout_restores_less() -> None:
    found = direction_transfer.below_last(
        ASSETS / "planted", {"finance-r8": "resid_post.2 last_prompt, whitened shift"}
    )
    assert list(found) == ["finance-r8"] and set(found["finance-r8"]) == {
        "direction",
        "unembedding contrast",
    }
    assert all(np.isfinite(v) and v < 0.85 for v in found["finance-r8"].values())


def test_the_page_shows_what_was_measured() -> None:
    found = read_json(EVIDENCE / "direction_transfer.json")["values"]
    assert len(found["worlds"]) >= 3 and found["over_worlds"] == direction_transfer.over_worlds(
        found["worlds"]
    )
    page = (EVIDENCE.parent / "evaluating_interventions.md").read_text("utf-8")
    d = direction_transfer
    for table in (d.goals_table, d.arms_table, d.below_last_table, d.tried_table):
        assert table(found) in page, table.__name__
