"""What the tables of `delta_overlap` say, in sentences: shared subspaces count as shown only where
the covariance null and the benign fine-tune are both exceeded at every layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from emlens.results.overlap_labels import BENIGN, CENTRED, ISOTROPIC, TESTED
from emlens.results.study_result import Finding, Part
from emlens.studies.verdicts import verdict

STUDY = "delta_overlap"
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class _Rows:
    """The centred rows of the table `overlap`, by comparison, and the leads over benign."""

    tested: pd.DataFrame
    benign: pd.DataFrame
    isotropic: pd.DataFrame
    leads: pd.DataFrame

    def of(self, model: str, position: str) -> "_Rows":
        """One fine-tune at one position; the isotropic null is the same at every position."""
        return _Rows(
            _at(self.tested, model, position),
            _at(self.benign, model, position),
            self.isotropic[self.isotropic["model"] == model],
            _at(self.leads, model, position),
        )


def _at(table: pd.DataFrame, model: str, position: str) -> pd.DataFrame:
    return table[(table["model"] == model) & (table["position"] == position)]


def add_findings(part: Part, position: str, draws: int) -> None:
    """Add one finding per fine-tune, a summary before them, and warnings of what is missing.

    Args:
        position: the one that findings are about. draws: of the covariance null.
    """
    rows = _rows(part)
    models = list(dict.fromkeys(rows.tested["model"]))
    for model in models:
        part.findings.append(_finding(model, rows.of(model, position), position, draws))
    part.findings.insert(0, _summary(part.findings, rows, models, position))
    if not len(rows.benign):
        part.warnings.append(
            "the benign control is missing from the overlap comparison:"
            " overlap beyond a benign fine-tune is not shown"
        )
    part.warnings.append(
        f"covariance nulls have {draws} draws: no p below {1 / (draws + 1):.2g} can be seen"
    )


def _rows(part: Part) -> _Rows:
    table = part.tables["overlap"]
    centred = table[table["center"] == CENTRED]
    tested = centred[centred["comparison"] == TESTED]
    no_leads = pd.DataFrame(columns=["model", "position", "lead_low"])
    return _Rows(
        tested=tested[tested["null_kind"] != ISOTROPIC],
        benign=centred[centred["comparison"] == BENIGN],
        isotropic=table[table["null_kind"] == ISOTROPIC],
        leads=part.tables.get("overlap_benign", no_leads),
    )


def _finding(model: str, rows: _Rows, position: str, draws: int) -> Finding:
    """One fine-tune over all layers at a position."""
    tested = rows.tested
    layers = len(tested)
    # Bonferroni: one test per layer, so each p is multiplied by the number of layers
    above_null = int((tested["p"] * layers < LEVEL).sum())
    # with fewer draws the smallest p, times the number of layers, is above the level
    resolved = layers / (draws + 1) < LEVEL
    # without a benign control there is no row, and no layer counts as above it
    above_benign = int((rows.leads["lead_low"] > 0).sum())
    unreachable = "" if resolved else f", which {draws} draws cannot reach"
    sentence = (
        f"{model}: {_levels(rows, position)},"
        f" exceeded in {above_null} of {layers} layers (Bonferroni .05{unreachable})"
    )
    if len(rows.benign):
        level = f" ({_range(rows.benign['value'])})" if _has_one_k(rows.benign) else ""
        sentence += (
            f"; the benign fine-tune's own overlap{level} is exceeded,"
            f" with the whole interval of the difference, in {above_benign} of {layers}"
        )
    status = verdict(
        shown=above_null == layers and above_benign == layers,
        not_shown=resolved and above_null == 0,
    )
    return Finding(STUDY, f"{sentence}.", status)


def _has_one_k(table: pd.DataFrame) -> bool:
    return table["k"].nunique() == 1


def _levels(rows: _Rows, position: str) -> str:
    """How high overlaps and their null are; overlaps of different k are never one range."""
    tested = rows.tested
    ks = tested["k"]
    if not _has_one_k(tested):
        return (
            f"centred top-k shifts on training and unrelated prompts (k from {ks.min()} to"
            f" {ks.max()} by layer) differ by {_range(tested['value'] - tested['null_mean'])} from"
            f" the mean of the covariance-matched null of the same k at {position}; the null is"
        )
    landmark = rows.isotropic["null_mean"][rows.isotropic["k"] == ks.iloc[0]].iloc[0]
    return (
        f"centred top-{ks.iloc[0]} shifts on training and unrelated prompts"
        f" overlap by {_range(tested['value'])} over layers at {position};"
        f" the isotropic landmark is {landmark:.2f},"
        f" the covariance-matched null {_range(tested['null_mean'])}"
    )


def _summary(
    findings: Sequence[Finding], rows: _Rows, models: Sequence[str], position: str
) -> Finding:
    shown = sum(finding.status == "shown" for finding in findings)
    values, chance = rows.tested["value"], rows.tested["null_mean"]
    landmark = rows.isotropic["null_mean"].max()
    sentence = (
        "Shifts on training and on unrelated prompts share subspaces (centred overlap"
        f" {values.min():.2f} to {values.max():.2f} over fine-tunes, layers and positions)."
        f" The isotropic landmark is {landmark:.2f}, but unrelated samples as anisotropic as the"
        f" activations already share {chance.min():.2f} to {chance.max():.2f};"
    )
    if not _has_one_k(rows.tested):
        gaps, ks = values - chance, rows.tested["k"]
        sentence = (
            f"Shifts on training and on unrelated prompts were compared in {ks.min()} to {ks.max()}"
            " dimensions, by fine-tune, layer and position: their centred overlap minus that of"
            " unrelated samples as anisotropic as the activations, at the same k, is"
            f" {gaps.min():.2f} to {gaps.max():.2f};"
        )
    sentence += (
        " more than that, and more than the benign fine-tune,"
        f" at every layer at {position}, is shared in {shown} of {len(models)} fine-tunes."
    )
    return Finding(STUDY, sentence, "summary")


def _range(values: "pd.Series[float]") -> str:
    return f"{values.min():.2f}–{values.max():.2f}"
