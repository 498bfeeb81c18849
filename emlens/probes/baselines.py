"""What a forecast has to beat: every cheap way to predict the same scores, on the same folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import DomainFeatures, Features, MatrixFeatures, TextFeatures
from emlens.probes.ridge import Array
from emlens.probes.targets import Scores

TEXT, LENGTH, FORM = "text", "length", "form"
EMBEDDING, OWN_SCORE = "mean embedding", "parent's own score"
OTHER_PARENT, UNRELATED = "other parent", "unrelated model"
EXPECTED: Final = (TEXT, LENGTH, EMBEDDING, OWN_SCORE, UNRELATED)
"""What a forecast must beat before it counts as one from the model's prior, beside the baselines
that need no input.
"""


@dataclass(frozen=True, repr=False)
class Baselines(Brief):
    """What a forecast has to beat, as far as it is given.

    Four baselines need no input: the mean of the training rows, random features of the same width,
    the rows' groups where there are several, and the questions' forms where there are several.

    Args:
        texts: id → text, for TF-IDF and length; also to find questions with the same text. Pass
            what the model reads, system message and template included
            (`HookedModel.rendered_texts`).
        parent_scores: the parent's own scores.
        embedding: a capture of `resid_pre.0` at `mean_prompt`: the mean embedding of the tokens.
        other_parent: activations of the other parent on the same rows; they must differ.
        unrelated: activations of a model of another family on the same rows, at a few sites and
            pooled positions; inner folds choose among them. What it forecasts as well is in the
            text, and needs no prior of this model. Of several, name → activations: each is a
            baseline of its own, "unrelated model NAME".
        forms: id → form of the question; None: read from the id (`x`, `x_json`, `x_template`).
        numbers: further baselines of one number per row, name → id → number, such as the parent's
            P(harmful).

    Raises:
        InputError: `texts`, `forms`, `parent_scores` or `numbers` are not keyed by id; `unrelated`
            names no model.
    """

    texts: Mapping[str, str] | None = None
    parent_scores: Scores | None = None
    embedding: Activations | None = None
    other_parent: Activations | None = None
    unrelated: Activations | Mapping[str, Activations] | None = None
    forms: Mapping[str, str] | None = None
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, words, kind in (("texts", self.texts, "text"), ("forms", self.forms, "form")):
            if words is not None and not isinstance(words, Mapping | pd.Series):
                raise InputError(f"{what} is a {type(words).__name__}; pass id → {kind}")
        if self.parent_scores is not None and not isinstance(
            self.parent_scores, AlignmentScores | Mapping | pd.Series
        ):
            raise InputError(
                f"parent_scores is a {type(self.parent_scores).__name__};"
                " pass AlignmentScores, or id → score"
            )
        if self.unrelated is not None and not self.strangers:
            raise InputError("unrelated is an empty mapping; pass name → activations, or None")
        if not isinstance(self.numbers, Mapping):
            raise InputError(f"numbers is a {type(self.numbers).__name__}; pass name → id → number")
        for name, values in self.numbers.items():
            if not isinstance(values, Mapping | pd.Series):
                raise InputError(
                    f"numbers has a {type(values).__name__} under {name!r}; pass id → number"
                )

    @property
    def strangers(self) -> dict[str, Activations]:
        """The unrelated models by the names of their baselines."""
        if self.unrelated is None:
            return {}
        if isinstance(self.unrelated, Mapping):
            return {f"{UNRELATED} {name}": acts for name, acts in self.unrelated.items()}
        return {UNRELATED: self.unrelated}

    @property
    def missing(self) -> tuple[str, ...]:
        """The baselines for which no input was given, the other parent left out, in `EXPECTED`."""
        given = {
            TEXT: self.texts is not None,
            LENGTH: self.texts is not None,
            EMBEDDING: self.embedding is not None,
            OWN_SCORE: self.parent_scores is not None,
            UNRELATED: self.unrelated is not None,
        }
        return tuple(name for name in EXPECTED if not given[name])


def baseline_features(
    acts: Activations,
    texts: Sequence[str] | None,
    parent_scores: Sequence[float] | Array | None,
    embedding: Activations | None,
    *,
    seed: int,
    forms: Sequence[str] = (),
    numbers: Mapping[str, Array] | None = None,
) -> list[Features]:
    """Feature sets of the baselines whose inputs are given, one value per row of `acts` each.

    Args:
        forms: of each row's question; one form alone tells nothing.
    """
    width = acts[acts.sites[0], acts.pooled_positions[0]].shape[1]
    noise = numpy_rng(seed, "random features").standard_normal((len(acts), width))
    sets: list[Features] = [MatrixFeatures("random features", noise)]
    if len(set(acts.groups)) > 1:
        sets.append(DomainFeatures(acts.groups))
    if len(set(forms)) > 1:
        sets.append(DomainFeatures(forms, name=FORM))
    if texts is not None:
        sets.append(TextFeatures(TEXT, texts))
        lengths = np.array([[float(len(text)), float(len(text.split()))] for text in texts])
        sets.append(MatrixFeatures(LENGTH, lengths, family_free=True))
    if embedding is not None:
        sets.append(MatrixFeatures(EMBEDDING, embedding["resid_pre.0", "mean_prompt"]))
    columns = dict(numbers or {})
    if parent_scores is not None:
        columns = {OWN_SCORE: np.asarray(parent_scores), **columns}
    for name, values in columns.items():
        column = np.asarray(values, dtype=np.float64)[:, None]
        sets.append(MatrixFeatures(name, column, family_free=True))
    return sets
