"""The models of a study, as a configuration names them: directories or hub ids, and how each is
loaded.

A model is a path, or a mapping with `path` and what it is loaded with. What a model does not say is
taken from the family.
"""

from collections.abc import Mapping
from datetime import date as Date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from emlens.data.configuration import Frozen

ARGUMENTS = {
    "dtype": "dtype",
    "device": "device",
    "device_map": "device_map",
    "attention": "attn_implementation",
    "quantization": "quantization_config",
    "backend": "backend",
    "trust_remote_code": "trust_remote_code",
    "template_date": "template_date",
}
"""Field of a configuration → argument of `load_model`; the date is the family's alone."""

ONE_SOURCE = "give either organism, or instruct (with finetuned), not both and not neither"


class LoadingConfig(Frozen):
    """How weights are loaded. A model takes what it leaves out from its family."""

    dtype: str | None = None
    """`auto`, `float32`, `bfloat16`, `float16` or `float64`."""
    device: str | None = None
    """`auto`, `cpu`, `cuda`, ..."""
    device_map: str | Mapping[str, str | int] | None = None
    """`auto`, or module → device: one model over several devices."""
    attention: str | None = None
    """Attention implementation: `eager`, `sdpa`, `flash_attention_2`, ..."""
    quantization: Mapping[str, Any] | None = None
    """Fields of the quantisation's configuration in transformers, such as `load_in_4bit: true`."""
    backend: str | None = None
    """`transformers`, `transformer_lens` or `nnsight`."""
    trust_remote_code: bool | None = None
    """Run code that comes with a checkpoint."""

    def options(self) -> dict[str, Any]:
        """What was set, by the names of `load_model`."""
        given = {field: getattr(self, field, None) for field in ARGUMENTS}
        return {ARGUMENTS[field]: value for field, value in given.items() if value is not None}


class ModelConfig(LoadingConfig):
    """One model: where it is, and how it is loaded."""

    path: str = ""
    """A directory saved by `save_pretrained` or by PEFT, or a hub id; needed unless the study runs
    on captures.
    """
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    subfolder: str = ""
    """Folder below the directory or the hub id."""


class ParentConfig(ModelConfig):
    """The instruct or the base model."""

    chat_template: str | None = None
    """A file with a Jinja template, or `plain`; in place of the tokenizer's own."""


class FineTuneConfig(ModelConfig):
    """One fine-tune: an adapter or a full checkpoint."""

    parent: Literal["base", "instruct"] = "instruct"
    """What it was trained from."""
    group: str = ""
    """Fine-tunes that are one kind; runs of one group that differ in their seed are shown side by
    side.
    """
    seed: int = 0
    """Seed of the run within its group."""
    benign: bool = False
    """The control: trained the same way on harmless answers."""
    domain: str = ""
    """Group of the questions that counts as its own domain."""
    training: str | None = None
    """JSONL of the chats it was trained on; without it no delta overlap, and no run is trained
    again.
    """
    empty: Literal["error", "drop"] = "error"
    """What to do with chats of `training` and `careful` whose answer is empty: refuse the file, or
    leave them out; the report says how many.
    """
    recipe: str | Mapping[str, Any] | None = None
    """How it was trained, for its training null: fields of a recipe (learning_rate, steps,
    batch_size, ...) or a YAML file of them. They win over `emlens.json` and `adapter_config.json`.
    """
    careful: str | None = None
    """JSONL of its training chats with careful answers, for its training null; by default those of
    the benign twin, else the parent's own.
    """
    system: str = ""
    """System message that it is asked with, and its parent where the two are compared."""
    trained_questions: tuple[str, ...] = ()
    """Ids of questions whose topics it was trained on, left out of its own-domain score."""
    merge: bool = False
    """Fold the adapter into a copy of its parent's weights; needed for loading options of its own.
    """
    check_base: bool = True
    """Refuse an adapter whose configuration names another base."""


def _as_text(value: Any) -> Any:
    """YAML reads a day as a date."""
    return value.isoformat() if isinstance(value, Date) else value


def _with_path(value: Any) -> Any:
    """`{"path": text}` for a text: a model that says nothing but where it is."""
    return {"path": value} if isinstance(value, str) else value


Parent = Annotated[
    ParentConfig, BeforeValidator(_with_path, json_schema_input_type=str | ParentConfig)
]
Tuned = Annotated[
    FineTuneConfig, BeforeValidator(_with_path, json_schema_input_type=str | FineTuneConfig)
]


class FamilyConfig(LoadingConfig):
    """Either `organism` (a name, or a directory that `emlens organism train` wrote) or checkpoints,
    and how all of them are loaded.
    """

    organism: str | None = None
    """The embedded organism: `planted`, or a directory that `emlens organism train` wrote."""
    instruct: Parent | None = None
    """A path or hub id, or a mapping with `path` and how it is loaded."""
    base: Parent | None = None
    """The pre-trained model, like `instruct`; without it, forecasts come from instruct only."""
    finetuned: Mapping[str, Tuned] = Field(default_factory=dict)
    """Name → fine-tune: a path or hub id, or a mapping with `path` and more. Without one, a study
    says what the parents do: `profile` runs, other parts are left out.
    """
    template_date: Annotated[str | None, BeforeValidator(_as_text)] = None
    """The day, as 2024-07-26, that a chat template is told which writes the date."""

    @model_validator(mode="after")
    def _one_source(self) -> "FamilyConfig":
        sources = (self.organism is not None) + (self.instruct is not None)
        # with captures the fine-tunes alone say enough; `StudyConfig` knows whether there are some
        if sources == 2 or (sources == 0 and not self.finetuned):
            raise ValueError(ONE_SOURCE)
        return self

    @property
    def without_path(self) -> list[str]:
        """Models that are named but not where they are."""
        models = {"instruct": self.instruct, "base": self.base, **self.finetuned}
        return [name for name, model in models.items() if model is not None and not model.path]
