"""What a study is asked to do: a frozen configuration, read from YAML, checked before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from emlens.data.readers import read_yaml
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line
from emlens.foundation.positions import parse_position


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(_Frozen):
    """Base of the options of one part of a study; fields are checked, unknown ones are refused."""


_Options = TypeVar("_Options", bound=Options)


class FineTuneConfig(_Frozen):
    """One fine-tune on disk.

    path: adapter or full checkpoint. training: JSONL of the chats it was tuned on. trained_questions: ids of questions
    whose topics it was tuned on, left out of its own-domain score.
    """

    path: str
    parent: Literal["base", "instruct"] = "instruct"
    group: str = ""
    seed: int = 0
    benign: bool = False
    domain: str = ""
    training: str | None = None
    trained_questions: tuple[str, ...] = ()


class FamilyConfig(_Frozen):
    """Either `organism` (a name, or a directory that `emlens organism train` wrote) or paths to checkpoints."""

    organism: str | None = None
    instruct: str | None = None
    base: str | None = None
    finetuned: Mapping[str, FineTuneConfig] = Field(default_factory=dict)
    dtype: str = "auto"
    device: str = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> "FamilyConfig":
        if (self.organism is None) == (self.instruct is None):
            raise ValueError("give either organism, or instruct (with finetuned), not both and not neither")
        if self.instruct is not None and not self.finetuned:
            raise ValueError("finetuned is empty; give at least one fine-tune")
        return self


class StudyConfig(_Frozen):
    """A study.

    study: which one. questions: YAML, JSONL or CSV with reference answers (`careful`, `harmful`); not needed for an organism.
    neutral: JSONL of unrelated chats, for damage and for the neutral-text control. focus: fine-tunes to study closely
    (default: every harmful one). k: dimension of delta subspaces. draws: of each overlap null (p below 1/(draws+1) cannot be seen).
    shares: of the questions used to extract directions, to select a layer, and to report. options: part → what only that part reads.
    """

    study: str = "overview"
    family: FamilyConfig
    questions: str | None = None
    neutral: str | None = None
    focus: tuple[str, ...] = ()
    positions: tuple[str, ...] = ("last_prompt", "mean_prompt")
    k: int = Field(8, ge=1)
    draws: int = Field(1000, ge=20)
    shares: tuple[float, float, float] = (0.34, 0.22, 0.44)
    random_directions: int = Field(8, ge=1)
    folds: int = Field(5, ge=2)
    repeats: int = Field(3, ge=1)
    permutations: int = Field(200, ge=20)
    seed: int = Field(0, ge=0)
    options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    _folder: Path = PrivateAttr(default=Path())

    def path(self, text: str) -> str:
        """A path of this configuration: relative to the folder of its file where it exists there; hub ids stay as they are.

        The record of a study keeps what was written, so that a result names no folder of the machine it was made on.
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
            raise InputError(f"options: {_first(error, part)}") from None

    @model_validator(mode="after")
    def _sane(self) -> "StudyConfig":
        for position in self.positions:
            if not parse_position(position).pooled:
                raise ValueError(f"positions holds {position!r}; pass pooled positions such as last_prompt and mean_prompt")
        if len(set(self.positions)) != len(self.positions) or not self.positions:
            raise ValueError("positions must name at least one position, none twice")
        if not abs(sum(self.shares) - 1) <= 1e-6 or not min(self.shares) > 0:
            raise ValueError(f"shares={self.shares} must be three positive numbers that sum to 1")
        if len(set(self.focus)) != len(self.focus):
            raise ValueError(f"focus={self.focus} names a fine-tune twice")
        return self


def read_config(source: "str | Path | Mapping[str, Any] | StudyConfig") -> StudyConfig:
    """A checked configuration from a YAML file, a mapping or itself. Relative paths in a file are relative to the file.

    Raises:
        InputError: unreadable, or a field that is unknown or has a value it cannot take; the message names field and reason.
    """
    if isinstance(source, StudyConfig):
        return source
    where, base = "config", Path()
    record: Any = source
    if isinstance(source, str | Path):
        record, where, base = read_yaml(source), str(source), Path(source).parent
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: holds a {type(record).__name__}; a study configuration is a mapping of fields")
    try:
        checked = StudyConfig.model_validate(dict(record))
        checked._folder = base
        return checked
    except ValidationError as error:
        raise InputError(f"{where}: {_first(error)}") from None


def _first(error: ValidationError, *within: str) -> str:
    """The first thing that is wrong, by the name of its field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in (*within, *first["loc"])) or "configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"field {field!r}: {one_line(first['msg'])}{more}"

