"""Where the scores of a study come from, as a configuration says it: the section `scores`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from emlens.data.configuration import Frozen

KINDS = ("endpoint", "local", "rules", "references", "object")
"""Ways to name a judge, of which exactly one is given."""


class EndpointConfig(Frozen):
    """An OpenAI-compatible server, and the limits on asking it."""

    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written down."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one attempt."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Rate limit."""


class JudgeConfig(EndpointConfig):
    """What turns answers into scores: a model behind an endpoint, a local model, rules, reference
    answers, or an object of another module.
    """

    endpoint: str | None = None
    """Address up to and including the version, such as `http://localhost:8000/v1`."""
    model: str | None = None
    """The judge's name at the endpoint."""
    local: str | None = None
    """A directory saved by `save_pretrained`, or a hub id."""
    rules: str | None = None
    """A YAML file: metric → words and scores."""
    references: bool = False
    """Compare answers with the questions' reference answers, word by word."""
    object: str | None = None
    """`module:object` outside this library: a judge, or what gives one when it is called."""
    read: Literal["logprobs", "text"] = "logprobs"
    """Of an endpoint: expected score over log-probabilities, or the number in its reply."""
    reply_tokens: int = Field(4, ge=1)
    """Of an endpoint: length of a reply at most."""
    mass: float = Field(0.25, gt=0, le=1)
    """Least probability of whole numbers that makes a score."""
    prompts: Literal["auto", "questions", "own"] = "auto"
    """The questions' judge prompts, or emlens's own; `auto`: the questions' where they have them
    for both metrics.
    """

    @model_validator(mode="after")
    def _one_kind(self) -> "JudgeConfig":
        given = [name for name in KINDS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"a judge is named in one way, but {' and '.join(given) or 'none'} is given;"
                " pass endpoint (with model), local, rules, references: true, or 'module:object'"
            )
        if self.endpoint and not self.model:
            raise ValueError("endpoint is given without model; pass the judge's name there")
        return self


class SamplerConfig(EndpointConfig):
    """A server that holds the fine-tunes and answers for them."""

    endpoint: str
    """Address up to and including the version."""
    models: Mapping[str, str] = Field(min_length=1)
    """Model of the family → its name at the server. Others are sampled in this process."""


class EditsConfig(Frozen):
    """What differs under interventions, for arms, doses and transfer."""

    samples: int = Field(ge=1)
    """Answers to each paraphrase."""


class BudgetConfig(Frozen):
    """Limits on what the study may spend."""

    requests: int | None = Field(default=None, ge=1)
    """Requests to endpoints in all, repeated ones included."""


def _judge_record(value: Any) -> Any:
    """`module:object` and `references` as a mapping."""
    if value == "references":
        return {"references": True}
    return {"object": value} if isinstance(value, str) else value


Judging = Annotated[
    JudgeConfig, BeforeValidator(_judge_record, json_schema_input_type=str | JudgeConfig)
]

_FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    "likelihood": ("normalise",),
    "contrast": ("generic",),
    "judged": ("files", "files_as"),
    "sample": (
        "samples",
        "temperature",
        "max_new_tokens",
        "seed",
        "thinking",
        "judge",
        "sampler",
        "arms",
        "budget",
    ),
}
"""`how` → the fields that belong to it alone."""


class ScoresConfig(Frozen):
    """Where scores come from: the likelihood of reference answers, four answers that are weighed,
    judged files, or answers that are sampled and judged.
    """

    how: Literal["likelihood", "contrast", "judged", "sample"] = "likelihood"
    """`likelihood`: of reference answers; `contrast`: weigh four answers, careful and bad, polite
    and flippant; `judged`: files; `sample`: sample answers and judge them.
    """
    normalise: Literal["total", "token"] = "total"
    """Of likelihood: probabilities of whole answers, or per token (for answers of a sentence)."""
    generic: bool = True
    """Of contrast: also weigh the answers after a prompt that asks nothing, at twice the cost."""
    files: Mapping[str, str] = Field(default_factory=dict)
    """Of judged: model → CSV with one row per answer. Those of a fine-tune with `system` were given
    under it.
    """
    files_as: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """Of judged: fine-tune with `system` → parent → CSV of the parent's answers under that message,
    with which the fine-tune is compared.
    """
    samples: int = Field(50, ge=1)
    """Answers to each paraphrase of each question."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling."""
    max_new_tokens: int = Field(600, ge=1)
    """Longest answer."""
    seed: int | None = Field(default=None, ge=0)
    """Of sampling; default: the seed of the study."""
    thinking: bool | Literal["strip"] | None = None
    """Thinking mode of the chat template, where it has one; `strip` takes thoughts off answers."""
    judge: Judging | None = None
    """A mapping with `endpoint` and `model`, `local`, or `rules`; `references`; or
    `module:object`.
    """
    sampler: SamplerConfig | None = None
    """A server that answers for the fine-tunes; default: in this process."""
    arms: EditsConfig | None = None
    """Under interventions; default: as elsewhere."""
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    """Limits on what may be spent."""

    @model_validator(mode="after")
    def _belongs_together(self) -> "ScoresConfig":
        for how, names in _FIELDS_OF.items():
            changed = [name for name in names if getattr(self, name) != _default(name)]
            if how != self.how and changed:
                raise ValueError(f"{changed[0]} belongs to how: {how}, but how is {self.how}")
        if self.how == "judged" and not self.files:
            raise ValueError("how: judged needs files; pass one CSV per model")
        if self.how == "sample" and self.judge is None:
            raise ValueError(
                "how: sample needs a judge; pass judge: {endpoint: URL, model: NAME},"
                " {local: PATH}, {rules: FILE} or module:object"
            )
        return self


def _default(name: str) -> Any:
    return ScoresConfig.model_fields[name].get_default(call_default_factory=True)
