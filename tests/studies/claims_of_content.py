"""Claims of what a profile says about content and tone."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from studies.claim import Claim

from emlens.results import Finding
from emlens.studies import profile_content


def _row(
    model: str, other: str, measure: str, value: float, half: float = 0.1
) -> dict[str, object]:
    return {
        "model": model,
        "second_model": other,
        "measure": measure,
        "n": 10,
        "difference": value,
        "difference_low": value - half,
        "difference_high": value + half,
        "margin": np.nan,
        "p_tost": np.nan,
    }


def content(
    parent: float = -0.5,
    benign: float = -0.4,
    tone_only: float | None = -0.4,
    alike: float = 0.01,
    half: float = 0.1,
    p: float = 0.01,
) -> list[Finding]:
    """Findings of one harmful fine-tune and up to two controls of its domain.

    Args:
        parent, benign, tone_only: content against these. alike: of the two controls.
    """
    rows = [_row("bad", "instruct", "content", parent), _row("bad", "instruct", "tone", 0.3)]
    controls = []
    if not np.isnan(benign):
        controls.append("good")
        rows.append(_row("bad", "good", "content", benign))
    if tone_only is not None:
        controls.append("flip")
        rows.append(_row("bad", "flip", "content", tone_only))
        rows.append(_row("good", "flip", "content", alike, half) | {"p_tost": p})
    material = SimpleNamespace(harmful=["bad"], benign=controls, domain=lambda name: "north")
    return profile_content.content_findings(material, pd.DataFrame(rows))  # type: ignore[arg-type]


def statuses(**changes: float | None) -> list[str]:
    return [finding.status for finding in content(**changes)]  # type: ignore[arg-type]


CONTENT = [
    Claim(
        "content changed by -0.50 [-0.60, -0.40] nats a token against instruct",
        content,
        lambda: content(parent=np.nan),
    ),
    Claim("tone by +0.30", content, lambda: content(parent=np.nan)),
    Claim("-0.40 [-0.50, -0.30] against flip", content, lambda: content(tone_only=None)),
    Claim(
        "there is no benign control to compare it with",
        lambda: content(benign=np.nan, tone_only=None),
        content,
    ),
    Claim(
        "content outside its training domain cannot be compared (10 untrained domains)",
        lambda: content(parent=np.nan),
        content,
    ),
    Claim(
        "two controls of one domain: alike in content within ±0.15 nats a token",
        content,
        lambda: content(alike=0.4, p=0.9),
    ),
    Claim("not alike in content", lambda: content(alike=0.4, p=0.9), content),
    Claim("not known to be alike", lambda: content(alike=0.1, p=0.3), content),
    Claim("whether they are alike in content cannot be tested", lambda: content(p=np.nan), content),
]
