"""How a forecast is fitted and validated, as one record that is checked when it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, get_args

import pandas as pd

from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.probes.estimators import Setting, require_settings
from emlens.probes.shuffles import Shuffle
from emlens.probes.targets import Duplicates, Groups
from emlens.probes.validation import Count


@dataclass(frozen=True, repr=False)
class Design(Brief):
    """How a forecast is fitted and validated; every field has a default.

    Args:
        groups: what is held out together: None: each base question with all its forms and
            paraphrases; `"group"`: the rows' groups (whole domains); id → label; or one label per
            row.
        folds: how many outer folds; `"all"` holds out each unit alone, once.
        inner_folds: folds inside the training rows, on which features and settings are chosen.
        repeats: how often the outer folds are drawn again.
        settings: parameters of the estimator to choose among; for ridge `[{"alpha": 1.0}, ...]`;
            None: the estimator's own.
        weights: id → weight, for fitting and choosing (`sampling_weights`); R² stays unweighted.
        clamp: of a forecast of logits, how near to an end of the scale a score may come, in units
            of the score.
        shuffle: what the null relabels (`probes.shuffles`); None: groups where groups are held out,
            else questions.
        permutations: shuffles for the null and the maximum statistic; None: for ridge as many as
            the forecasts made in one call need (200 or more), none for the others, which fit each
            again.
        duplicates: rows of one text, or of identical activations, that folds would separate:
            `"refuse"`, `"group"` or `"allow"`.
        seed: of folds, shuffles, resamples and estimators.

    Raises:
        InputError: a number of folds, repeats or permutations that cannot be, empty settings, an
            unknown word.
    """

    groups: Groups | None = None
    folds: Count = 5
    inner_folds: int = 5
    repeats: int = 5
    settings: Sequence[Setting] | None = None
    weights: Mapping[str, float] | pd.Series | None = None
    clamp: float = 1.0
    shuffle: Shuffle | None = None
    permutations: int | None = None
    duplicates: Duplicates = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds != "all":
            _require_count("folds", self.folds, 2, "or 'all'")
        _require_count("inner_folds", self.inner_folds, 2)
        _require_count("repeats", self.repeats, 1)
        if self.permutations is not None:
            _require_count("permutations", self.permutations, 0, "or None")
        if self.shuffle is not None:
            _require_word("shuffle", self.shuffle, get_args(Shuffle))
        _require_word("duplicates", self.duplicates, get_args(Duplicates))
        require_settings(self.settings)

    def require_only(self, names: Sequence[str], caller: str) -> None:
        """Refuse fields that `caller` does not read, where they are not at their default.

        Raises:
            InputError: names the first such field.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            is_default = value is field.default or (
                isinstance(value, int | float | str) and value == field.default
            )
            if field.name not in names and not is_default:
                raise InputError(
                    f"design has {field.name}={value!r}, which {caller} does not use;"
                    f" it uses {', '.join(names)}"
                )


def _require_count(name: str, value: Any, least: int, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(
            f"{name}={value!r} must be an integer of at least {least} {otherwise}".rstrip()
        )


def _require_word(name: str, value: Any, words: Sequence[str]) -> None:
    if value not in words:
        raise InputError(
            f"{name}={value!r} is unknown; pass one of {', '.join(words)}", name=value, known=words
        )
