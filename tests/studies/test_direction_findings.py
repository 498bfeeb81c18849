"""A direction counts as shown only where every control is beaten, transfer only where the controls
of its target are.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from emlens.studies import direction_findings


def arms_table(**changes: Any) -> pd.DataFrame:
    """Arms of one fine-tune whose direction restores .8 and whose controls restore .1."""
    base = {
        "model": "m",
        "site": "resid_post.0",
        "role": "chosen",
        "on": "finetuned",
        "control": True,
        "coherent": 90.0,
        "coherent_change": -1.0,
        "kl": 0.01,
        "aligned": 50.0,
        "method": "x",
        "cosine": -0.2,
    }
    rows = []
    for arm, restoration, extra in (
        ("no ablation", 0.0, {}),
        ("direction", 0.8, {"control": False}),
        ("random", 0.1, {"restoration_max_draw": 0.2}),
        ("benign", 0.1, {}),
        ("instruct, direction", np.nan, {"on": "instruct"}),
    ):
        numbers = {
            "restoration": restoration,
            "restoration_low": restoration - 0.1,
            "restoration_high": restoration + 0.1,
        }
        lead = {
            "lead": 0.8 - restoration,
            "lead_low": 0.6 - restoration,
            "lead_high": 1 - restoration,
        }
        rows.append(
            {
                **base,
                "arm": arm,
                "restoration_max_draw": np.nan,
                **numbers,
                **lead,
                **extra,
                **changes.get(arm.split(",")[0], {}),
            }
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "shown"),
        # a control that is not clearly beaten
        ({"random": {"restoration": 0.7, "lead_low": -0.1}}, "undecided"),
        (
            {"random": {"restoration": 0.9, "lead": -0.1, "lead_low": -0.2, "lead_high": -0.01}},
            "not shown",
        ),
        # one random direction did as well
        ({"random": {"restoration_max_draw": 0.85}}, "undecided"),
        ({"direction": {"restoration_low": -0.1}}, "undecided"),
        ({"direction": {"restoration": 0.02, "restoration_high": 0.08}}, "not shown"),
        # an edit that breaks the model shows nothing
        ({"direction": {"coherent_change": -11.0}}, "undecided"),
        ({"instruct": {"kl": 0.2}}, "undecided"),
        ({"instruct": {"kl": np.nan}}, "shown"),
    ],
)
def test_a_direction_is_shown_only_where_every_control_is_beaten(
    changes: dict[str, Any], status: str
) -> None:
    part = direction_findings.Part()
    transfer = pd.DataFrame(
        {
            "direction_of": ["m"],
            "ablated_in": ["m"],
            "restoration": [0.8],
            "low": [0.7],
            "high": [0.9],
            "strongest_control": [0.1],
        }
    )
    part.tables |= {"arms": arms_table(**changes), "transfer": transfer}
    family = type("M", (), {"domain": staticmethod(lambda name: "north")})
    direction_findings.add_findings(part, family)  # type: ignore[arg-type]
    summary, finding = part.findings
    assert "outside the training domain" in summary.sentence
    assert (
        summary.status == "summary"
        and f"every control in {int(status == 'shown')} of 1 fine-tune." in summary.sentence
    )
    assert finding.status == status, finding.sentence
    assert "cosine with it -0.20" in finding.sentence
    assert ("more than the bound" in finding.sentence) == (
        changes.get("instruct", {}).get("kl", 0) > 0.1
        or changes.get("direction", {}).get("coherent_change", 0) < -10
    )


def test_without_a_training_domain_nothing_is_said_of_what_lies_outside_it() -> None:
    part = direction_findings.Part()
    transfer = pd.DataFrame(columns=["direction_of", "ablated_in", "restoration", "low", "high"])
    part.tables |= {"arms": arms_table(), "transfer": transfer}
    unnamed = type("M", (), {"domain": staticmethod(lambda name: "")})
    direction_findings.add_findings(part, unnamed)  # type: ignore[arg-type]
    sentences = " ".join(finding.sentence for finding in part.findings)
    assert "outside" not in sentences and "no training domain is named" in sentences


@pytest.mark.parametrize(
    ("low", "control", "status"),
    [(0.3, 0.1, "shown"), (0.3, 0.35, "undecided"), (-0.1, 0.1, "undecided")],
)
def test_transfer_has_to_beat_the_controls_of_its_target(
    low: float, control: float, status: str
) -> None:
    part = direction_findings.Part()
    rows = {
        "direction_of": ["a", "b"],
        "ablated_in": ["b", "a"],
        "restoration": [0.5] * 2,
        "low": [low] * 2,
        "high": [0.7] * 2,
        "strongest_control": [control] * 2,
    }
    part.tables |= {"arms": arms_table(), "transfer": pd.DataFrame(rows)}
    direction_findings.add_findings(
        part, type("M", (), {"domain": staticmethod(lambda name: "north")})
    )  # type: ignore[arg-type]
    assert part.findings[-1].status == status and part.findings[-1].sentence.startswith("Transfer")
