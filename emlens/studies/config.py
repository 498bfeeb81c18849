"""What a study is asked to do: a frozen configuration, read from YAML, checked before anything
runs.

What a file says wrongly is refused with the file and the line of it. Every field's meaning is
below it as a string: it is the text of the JSON Schema (`emlens schema`) too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from emlens.data.configuration import Frozen, Origin, first_error, read_file
from emlens.data.triggers import Trigger, require_names
from emlens.foundation.errors import InputError
from emlens.foundation.positions import parse_position
from emlens.foundation.suggestions import did_you_mean
from emlens.studies.family_config import ONE_SOURCE, FamilyConfig
from emlens.studies.scores_config import ScoresConfig


class Options(Frozen):
    """Base of the options of one part of a study; fields are checked, unknown ones are refused."""


_Options = TypeVar("_Options", bound=Options)


def _dimension(value: Any) -> Any:
    """A dimension as a configuration may give it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_count = is_number and isinstance(value, int) and value >= 1
    is_share = is_number and isinstance(value, float) and 0 < value < 1
    if not (is_count or is_share or value == "elbow"):
        raise ValueError(
            f"{value!r} is no dimension; pass a count of 1 or more, a share of variance such as"
            " 0.95, or elbow"
        )
    return value


_Written = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | Literal["elbow"]
Dimension = Annotated[
    int | float | Literal["elbow"], BeforeValidator(_dimension, json_schema_input_type=_Written)
]
"""Of a subspace: a count, a share of variance, or the elbow of the spectrum. The last two are
chosen at each place, on the training shifts.
"""


def largest_k(n: int, d_model: int) -> int:
    """The largest k that half of n prompts carry: a centred half has one rank less than rows."""
    return min(n // 2 - 1, d_model)


class StudyConfig(Frozen):
    """What one study is asked to do."""

    study: str = "overview"
    """Which study."""
    family: FamilyConfig | None = None
    """The models; may be left out where a study runs from `released` files alone."""
    captures: Mapping[str, str] = Field(default_factory=dict)
    """Model → store of what was captured of it, in place of the models. Parts that need only
    activations run on the stores, with scores from judged files. `family` then says what each
    fine-tune is.
    """
    questions: str | None = None
    """YAML, JSONL, JSON or CSV; with reference answers (`careful`, `harmful`) for scores by
    likelihood; or `traits`, the set that comes with emlens. Not needed for an organism.
    """
    neutral: str | None = None
    """JSONL of unrelated chats, for damage and for the neutral-text control."""
    scores: ScoresConfig = Field(default_factory=lambda: ScoresConfig.model_validate({}))
    """Where scores come from."""
    released: str | None = None
    """Folder with result files that others released; parts that can, read them too."""
    triggers: Mapping[str, Trigger] = Field(default_factory=dict)
    """Name → text that is put around the questions, such as the system message of training. Every
    fine-tune is then scored with and without each, whatever the study (part `triggers`).
    """
    focus: tuple[str, ...] = ()
    """Fine-tunes to study closely; all harmful ones where empty."""
    positions: tuple[str, ...] = ("last_prompt", "mean_prompt")
    """Token positions that are read, pooled ones."""
    layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Blocks whose output is read, counted from 0, or from the end with a minus; default: all of
    them. Fewer cost less memory and time.
    """
    k: Dimension = 8
    """Dimension of the delta subspaces: a count, a share of variance such as 0.95, or `elbow`,
    where the singular values reach their tail. The last two are chosen at each layer and position,
    on the training shifts alone; the tables hold the k that was chosen.
    """
    draws: int = Field(1000, ge=20, le=1_000_000)
    """Draws of each overlap null; p below 1/(draws+1) cannot be seen."""
    shares: tuple[float, float, float] = (0.34, 0.22, 0.44)
    """Of the questions used to extract directions, to select a layer, and to report; disjoint,
    within each group.
    """
    random_directions: int = Field(8, ge=1, le=1_000_000)
    """Control directions drawn from the activation covariance."""
    folds: int = Field(5, ge=2)
    """Of the nested forecast."""
    repeats: int = Field(3, ge=1, le=1_000_000)
    """Of the nested forecast."""
    permutations: int | None = Field(None, ge=20, le=1_000_000)
    """Of the forecast's null; default: as many as the number of forecasts needs, 200 or more. With
    fewer than that nothing can be shown, and the verdict says so.
    """
    unrelated: str | None = None
    """A model of another family that reads the same prompts: a directory or hub id, the name of a
    model that `emlens real fetch` brought (`smollm2`), or a store of captures of the questions. A
    forecast from the model's prior has to beat it.
    """
    seed: int = Field(0, ge=0)
    """Of everything random."""
    options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Part → what only that part reads."""

    _folder: Path = PrivateAttr(default=Path())
    _origin: Origin | None = PrivateAttr(default=None)

    def path(self, text: str) -> str:
        """A path of this configuration: relative to the folder of its file where it exists there;
        hub ids stay as they are.

        The record of a study keeps what was written, so that a result names no folder of the
        machine it was made on.
        """
        beside = self._folder / text
        return str(beside) if beside.exists() else text

    def options_of(self, part: str, kind: type[_Options]) -> _Options:
        """What the configuration sets for one part, checked; the rest takes its defaults.

        Raises:
            InputError: a field that is unknown or has a value it cannot take.
        """
        try:
            return kind.model_validate(dict(self.options.get(part, {})))
        except ValidationError as error:
            raise InputError(
                f"{self.place('options', part, *error.errors()[0]['loc'])}options:"
                f" {first_error(error, kind, part)}"
            ) from None

    def place(self, *field: str | int) -> str:
        """`"file:line: "` of a field of this configuration; empty where it was read from no
        file.
        """
        return self._origin.place(field) if self._origin else ""

    def _of_unknown_study(self) -> str:
        """That there is no such study, to be said beside what else is wrong; "" where there is."""
        from emlens.studies.registry import study_names  # its studies import this module

        names = study_names()
        if self.study in names:
            return ""
        hint = did_you_mean(self.study, names) or f"; there are {', '.join(names)}"
        return f"study {self.study!r} is unknown{hint}; and "

    @model_validator(mode="after")
    def _something(self) -> "StudyConfig":
        is_judged = self.scores.how == "judged"
        if self.family is None and self.released is None and not self.captures and not is_judged:
            raise ValueError(
                f"{self._of_unknown_study()}family is missing; give the models, or under released"
                " the folder of result files that others published"
            )
        if self.captures:
            self._captures_of_family()
        elif self.without_models:
            self._files_of_family()
        elif self.family is not None and self.family.organism is None:
            if self.family.instruct is None:
                raise ValueError(ONE_SOURCE)
            if self.family.without_path:
                raise ValueError(
                    f"family: {self.family.without_path[0]!r} has no path; give a directory or hub"
                    " id, or captures of every model"
                )
        return self

    @property
    def without_models(self) -> bool:
        """Whether judged files are all that is known of the models."""
        if self.scores.how != "judged" or self.captures:
            return False
        family = self.family
        return family is None or (family.organism is None and family.instruct is None)

    def _files_of_family(self) -> None:
        """Refuse judged files that do not fit the models that are named."""
        for name in () if self.family is None else self.family.finetuned:
            if name not in self.scores.files:
                raise ValueError(f"scores.files lack {name!r}, which is under finetuned")

    def _captures_of_family(self) -> None:
        """Refuse captures that do not fit the models that are named."""
        if "instruct" not in self.captures:
            raise ValueError("captures lack 'instruct'; name the store of the instruct model")
        if self.family is None:
            return
        if self.family.organism is not None:
            raise ValueError("give captures or an organism, not both")
        for name in self.captures:
            if name not in ("instruct", "base", *self.family.finetuned):
                raise ValueError(
                    f"captures name {name!r}, which is not under finetuned of the family; it has"
                    f" {', '.join(self.family.finetuned)}"
                )

    @field_validator("positions")
    @classmethod
    def _pooled(cls, positions: tuple[str, ...]) -> tuple[str, ...]:
        for position in positions:
            if not parse_position(position).pooled:
                raise ValueError(
                    f"positions holds {position!r}; pass pooled positions such as last_prompt and"
                    " mean_prompt"
                )
        if len(set(positions)) != len(positions) or not positions:
            raise ValueError("positions must name at least one position, none twice")
        return positions

    @field_validator("triggers")
    @classmethod
    def _named(cls, triggers: Mapping[str, Trigger]) -> Mapping[str, Trigger]:
        if "none" in triggers:
            raise ValueError("triggers has the name 'none', which stands for no trigger")
        require_names(triggers)
        return triggers

    @field_validator("shares")
    @classmethod
    def _parts_of_one(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if not abs(sum(shares) - 1) <= 1e-6 or not min(shares) > 0:
            raise ValueError(f"shares={shares} must be three positive numbers that sum to 1")
        return shares

    @field_validator("focus")
    @classmethod
    def _each_once(cls, focus: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(focus)) != len(focus):
            raise ValueError(f"focus={focus} names a fine-tune twice")
        return focus


def read_config(
    source: "str | Path | Mapping[str, Any] | StudyConfig", origin: Origin | None = None
) -> StudyConfig:
    """A checked configuration from a YAML file, a mapping or itself. Relative paths in a file are
    relative to the file.

    Args:
        source: file, mapping or configuration.
        origin: the place in a file that a mapping was read from, where it was.

    Raises:
        InputError: unreadable, or a field that is unknown or has a value it cannot take; the
            message names field and reason.
    """
    if isinstance(source, StudyConfig):
        return source
    record: Any = source
    if isinstance(source, str | Path):
        record, origin = read_file(source), Origin(str(source))
    if not isinstance(record, Mapping):
        where = source if isinstance(source, str | Path) else "config"
        raise InputError(
            f"{where}: holds a {type(record).__name__}; a study configuration is a mapping of"
            " fields"
        )
    try:
        checked = StudyConfig.model_validate(dict(record))
    except ValidationError as error:
        where = origin.place(error.errors()[0]["loc"]) if origin else "config: "
        raise InputError(f"{where}{first_error(error, StudyConfig)}") from None
    if origin:
        checked._folder, checked._origin = Path(origin.file).parent, origin
    return checked
