"""What a forecast has to beat: every cheap way to predict the same scores, on the same folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from emlens.activations import Activations
from emlens.data.scores import AlignmentScores
from emlens.foundation.errors import InputError
from emlens.foundation.seeds import numpy_rng
from emlens.probes.features import DomainFeatures, Features, MatrixFeatures, TextFeatures
from emlens.probes.ridge import Array
from emlens.probes.targets import Scores


@dataclass(frozen=True)
class Baselines:
    """What a forecast has to beat, as far as it is given.

    Three baselines need no input: the mean of the training rows, random features of the same width,
    and the rows' groups where there are several.

    Args:
        texts: id → question text, for TF-IDF and length; also to find questions with the same text.
        parent_scores: the parent's own scores.
        embedding: a capture of `resid_pre.0` at `mean_prompt`: the mean embedding of the tokens.
        other_parent: activations of the other parent on the same rows; they must differ.
        numbers: further baselines of one number per row, name → id → number, such as the parent's
            P(harmful).

    Raises:
        InputError: `texts`, `parent_scores` or `numbers` are not keyed by id.
    """

    texts: Mapping[str, str] | None = None
    parent_scores: Scores | None = None
    embedding: Activations | None = None
    other_parent: Activations | None = None
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.texts is not None and not isinstance(self.texts, Mapping | pd.Series):
            raise InputError(f"texts is a {type(self.texts).__name__}; pass id → text")
        if self.parent_scores is not None and not isinstance(
            self.parent_scores, AlignmentScores | Mapping | pd.Series
        ):
            raise InputError(
                f"parent_scores is a {type(self.parent_scores).__name__};"
                " pass AlignmentScores, or id → score"
            )
        if not isinstance(self.numbers, Mapping):
            raise InputError(f"numbers is a {type(self.numbers).__name__}; pass name → id → number")
        for name, values in self.numbers.items():
            if not isinstance(values, Mapping | pd.Series):
                raise InputError(
                    f"numbers has a {type(values).__name__} under {name!r}; pass id → number"
                )


def baseline_features(
    acts: Activations,
    texts: Sequence[str] | None,
    parent_scores: Sequence[float] | Array | None,
    embedding: Activations | None,
    *,
    seed: int,
    numbers: Mapping[str, Array] | None = None,
) -> list[Features]:
    """Feature sets of the baselines whose inputs are given, one value per row of `acts` each."""
    width = acts[acts.sites[0], acts.pooled_positions[0]].shape[1]
    noise = numpy_rng(seed, "random features").standard_normal((len(acts), width))
    sets: list[Features] = [MatrixFeatures("random features", noise)]
    if len(set(acts.groups)) > 1:
        sets.append(DomainFeatures(acts.groups))
    if texts is not None:
        sets.append(TextFeatures("text", texts))
        lengths = np.array([[float(len(text)), float(len(text.split()))] for text in texts])
        sets.append(MatrixFeatures("length", lengths, family_free=True))
    if embedding is not None:
        sets.append(MatrixFeatures("mean embedding", embedding["resid_pre.0", "mean_prompt"]))
    columns = dict(numbers or {})
    if parent_scores is not None:
        columns = {"parent's own score": np.asarray(parent_scores), **columns}
    for name, values in columns.items():
        column = np.asarray(values, dtype=np.float64)[:, None]
        sets.append(MatrixFeatures(name, column, family_free=True))
    return sets
