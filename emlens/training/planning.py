"""What a training run, or a sweep, will take: memory and time, before any weight is loaded.

The parent is built from its configuration without weights, the recipe's adapter is put on it, and
the batches of every step are made from the real rows. So weights, trained values, tokens and steps
are counted, not guessed. What a pass keeps for its gradient follows Korthikanti et al. 2022
(equation 1, without attention scores, which fused attention does not keep): 34 bytes per block,
token and coordinate of the stream in 16 bits, 68 in float32; with gradient checkpointing the input
of each block, and all of one. What training computes again (`emlens.training.recomputing`) is
counted as kept. With `parent_dtype: nf4` a pass also makes one layer at a time whole. Logits are
kept three times in float32, at answer tokens alone. What a library keeps for itself (buffers of a
GPU, pieces of freed memory) is not in it.

Time is arithmetic over a rate that is given: two operations per weight and token forward, as many
again for gradients of the stream, again for gradients of trained weights (`full`), and the forward
pass once more with checkpointing.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line
from emlens.models.four_bits import largest_quantised, nf4_bytes
from emlens.training.adapters import with_adapter
from emlens.training.batching import StepBatches, step_batches
from emlens.training.examples import IGNORED, Example, encode_answers
from emlens.training.lengths import context_of
from emlens.training.objectives import Objective
from emlens.training.recipes import FOUR_BITS, Recipe
from emlens.training.streams import SteeredModel
from emlens.training.sweeps import Sweep

MOMENTS: Final[Mapping[str, int]] = {"adamw": 2, "lion": 1, "muon": 2, "sam": 3}
"""Values that an optimiser keeps for each trained one; Muon's where AdamW takes its place."""
_KEPT: Final = 17
"""Values of the stream's width that a block keeps for each token, of the size of an activation."""
_LOGITS: Final = 3
_FLOAT: Final = 4


@dataclass(frozen=True)
class RunPlan:
    """What one run takes; bytes, tokens and seconds.

    Args:
        parameters: of the parent. trained: values that are trained.
        weights: bytes of the parent's weights.
        optimiser: bytes of trained values, their gradients and what the optimiser keeps.
        kept: most bytes that a pass keeps for its gradient, logits and one layer that is made whole
            from 4 bits included.
        steps: of the run. tokens: padded tokens in all of them.
        seconds: at the given rate; None without one.
    """

    parameters: int
    trained: int
    weights: int
    optimiser: int
    kept: int
    steps: int
    tokens: int
    seconds: float | None

    @property
    def memory(self) -> int:
        """Most bytes at once."""
        return self.weights + self.optimiser + self.kept

    def to_record(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory}


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of every run, by its name."""

    runs: Mapping[str, RunPlan]

    @property
    def seconds(self) -> float | None:
        """Of all runs, one after the other."""
        times = [run.seconds for run in self.runs.values() if run.seconds is not None]
        return sum(times) if times else None

    @property
    def memory(self) -> int:
        """Of the largest run."""
        return max(run.memory for run in self.runs.values())

    def lines(self) -> list[str]:
        """The plan as text: one line for each kind of run, then what holds for all of them."""
        lines = ["runs  steps      tokens     trained  weights  optimiser     kept   memory  time"]
        alike: dict[RunPlan, int] = {}
        for run in self.runs.values():
            alike[run] = alike.get(run, 0) + 1
        for run, count in alike.items():
            size = "".join(
                f"{value / 1e9:>{width}.2f}"
                for value, width in (
                    (run.weights, 9),
                    (run.optimiser, 11),
                    (run.kept, 9),
                    (run.memory, 9),
                )
            )
            lines.append(
                f"{count:>4}{run.steps:>7,}{run.tokens:>12,}{run.trained:>12,}{size}"
                f"  {_hours(run.seconds)}"
            )
        lines.append(
            f"{len(self.runs)} runs, {self.memory / 1e9:.2f} GB at most, {_hours(self.seconds)} one"
            " after the other; sizes in GB; steps, tokens and weights are counted; what a pass"
            " keeps, and time, are arithmetic"
        )
        return lines

    def to_record(self) -> dict[str, Any]:
        runs = {name: run.to_record() for name, run in self.runs.items()}
        return {"runs": runs, "memory": self.memory, "seconds": self.seconds}


def plan_training(
    what: Recipe | Sweep,
    parent: str | Path | Any,
    chats: PromptSet,
    *,
    tokenizer: Any = None,
    objectives: Sequence[Objective] = (),
    teraflops: float | None = None,
) -> TrainingPlan:
    """Plan a run or a sweep; nothing is loaded but the tokenizer.

    Args:
        parent: a directory with `config.json` and a tokenizer, or the configuration itself.
        tokenizer: the directory's own if None.
        objectives: of a run.
        teraflops: operations a second that the device keeps up in training, in 10¹²; None: no time.

    Raises:
        InputError: a configuration without a tokenizer; a rate that is not above 0; what `fit`
            refuses of recipe and data.
        LoadError: the directory has no configuration that transformers knows.
    """
    if teraflops is not None and not teraflops > 0:
        raise InputError(f"teraflops={teraflops} must be above 0")
    config, tokenizer = _configuration(parent, tokenizer)
    if isinstance(what, Recipe):
        named = {"run": (what, tuple(objectives))}
    else:
        named = {run.id: (run.recipe, tuple(run.objectives)) for run in what.runs}
    sizes: dict[Any, _Sizes] = {}
    read: dict[Any, _Read] = {}
    rows: PromptSet | Sequence[Example] = chats
    if not any(terms for _, terms in named.values()):
        rows = encode_answers(chats, tokenizer)  # once for all runs
    runs = {}
    for name, (recipe, terms) in named.items():
        built = _fields(recipe, _OF_SIZES)
        if built not in sizes:
            sizes[built] = _Sizes.of(recipe, config)
        of_run = sizes[built]
        ordered = (_fields(recipe, _OF_ROWS), tuple(map(id, terms)))
        if ordered not in read:
            batches = step_batches(recipe, rows, tokenizer, terms, context=of_run.context)
            read[ordered] = _Read.of(recipe, batches)
        runs[name] = _plan_run(recipe, of_run, read[ordered], teraflops)
    return TrainingPlan(runs)


_OF_SIZES: Final = (
    "method",
    "rank",
    "target_modules",
    "layers_to_transform",
    "dora",
    "parent_dtype",
)
_OF_ROWS: Final = (
    "seed",
    "steps",
    "batch_size",
    "accumulation",
    "max_length",
    "group_by_length",
)
"""Fields on which it depends what is trained, and which rows every part holds."""


def _fields(recipe: Recipe, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(recipe, name) for name in names)


@dataclass(frozen=True)
class _Read:
    """What the steps of a run read.

    Args:
        tokens: padded ones of all steps.
        parts: (padded, answered) tokens of every part that differs.
    """

    tokens: int
    parts: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, recipe: Recipe, batches: StepBatches) -> "_Read":
        tokens = 0
        parts = set()
        for step in range(recipe.steps):
            for part in batches.parts(step):
                padded = part["input_ids"].numel()
                tokens += padded
                parts.add((padded, int((part["labels"] != IGNORED).sum())))
        return cls(tokens, frozenset(parts))


@dataclass(frozen=True)
class _Sizes:
    """What a recipe trains, of which parent.

    Args:
        weights: bytes of the parent. unpacked: of the largest layer in 4 bits, once it is whole.
        itemsize: bytes of an activation.
    """

    parameters: int
    weights: int
    unpacked: int
    trained: int
    layers: int
    width: int
    vocabulary: int
    itemsize: int
    context: int | None

    @classmethod
    def of(cls, recipe: Recipe, config: Any) -> "_Sizes":
        from transformers import AutoModelForCausalLM

        dtype = torch.float32
        if recipe.parent_dtype != "float32":
            dtype = getattr(config, "dtype", None) or torch.float32
        config = copy.deepcopy(config)  # transformers writes the dtype into it
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
            parameters = sum(weight.numel() for weight in model.parameters())
            weights, unpacked = parameters * dtype.itemsize, 0
            if recipe.parent_dtype in FOUR_BITS:
                double = recipe.parent_dtype == "nf4_double"
                weights = nf4_bytes(model, dtype.itemsize, double=double)
                unpacked = largest_quantised(model) * dtype.itemsize
            trained_module: nn.Module = model
            if recipe.method == "lora":
                trained_module = with_adapter(recipe, model, "")
            elif recipe.method == "steering":
                trained_module = SteeredModel(model, recipe.layers_to_transform or ())
        trained = sum(w.numel() for w in trained_module.parameters() if w.requires_grad)
        text = config.get_text_config()
        return cls(
            parameters=parameters,
            weights=weights,
            unpacked=unpacked,
            trained=trained,
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            vocabulary=text.vocab_size,
            itemsize=dtype.itemsize,
            context=context_of(model),
        )


def _configuration(parent: str | Path | Any, tokenizer: Any) -> tuple[Any, Any]:
    if not isinstance(parent, str | Path):
        if tokenizer is None:
            raise InputError("parent is a configuration; pass its tokenizer too")
        return parent, tokenizer
    from transformers import AutoConfig

    from emlens.models.loading import saved_tokenizer

    path = Path(parent)
    if not (path / "config.json").is_file():
        raise LoadError(f"model={str(path)!r} has no config.json; pass the parent's directory")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"model={str(path)!r}: its configuration cannot be read ({one_line(str(error), 160)})"
        ) from None
    return config, saved_tokenizer(str(path), path) if tokenizer is None else tokenizer


def _plan_run(recipe: Recipe, sizes: _Sizes, read: _Read, teraflops: float | None) -> RunPlan:
    of_token, of_answer = _kept(recipe, sizes), _LOGITS * _FLOAT * sizes.vocabulary
    kept = max(of_token * padded + of_answer * answered for padded, answered in read.parts)
    kept += sizes.unpacked
    # each trained value has a gradient and its moments; a parent that is trained whole is there
    # already
    values = 1 + MOMENTS[recipe.optimiser] + (recipe.method != "full")
    return RunPlan(
        parameters=sizes.parameters,
        trained=sizes.trained,
        weights=sizes.weights,
        optimiser=_FLOAT * sizes.trained * values,
        kept=kept,
        steps=recipe.steps,
        tokens=read.tokens,
        seconds=_seconds(recipe, sizes.parameters, read.tokens, teraflops),
    )


def _kept(recipe: Recipe, sizes: _Sizes) -> int:
    """Bytes that blocks keep of each token."""
    value = sizes.itemsize * sizes.width
    if recipe.gradient_checkpointing:
        return (sizes.layers + _KEPT) * value
    return sizes.layers * _KEPT * value


def _seconds(recipe: Recipe, parameters: int, tokens: int, teraflops: float | None) -> float | None:
    if teraflops is None:
        return None
    passes = 2 + (recipe.method == "full") + recipe.gradient_checkpointing
    if recipe.optimiser == "sam":
        passes *= 2
    return 2 * parameters * tokens * passes / (teraflops * 1e12)


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "no rate given"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
