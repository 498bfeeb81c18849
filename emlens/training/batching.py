"""What each step of a run reads: rows of the data, and the rows that objectives bring, in the parts
that a step is run in.

Everything is a function of recipe, data and step, so a run that goes on from the middle reads what
it would have read. Memory: token ids of all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json, hash_tensors
from emlens.foundation.seeds import derive_seed
from emlens.training.examples import (
    Example,
    encode_answers,
    length_grouped_batches,
    pad_batch,
    shuffled_batches,
)
from emlens.training.lengths import LengthLimit, counted_tokens
from emlens.training.objectives import ChatChange, MixedRows, Objective, Penalty, prefix_of
from emlens.training.recipes import Recipe

Data = PromptSet | Sequence[Example] | Callable[[int], Mapping[str, Tensor]]
Parts = Callable[[int], Sequence[Mapping[str, Tensor]]]
RowsOfStep = Callable[[int], list[Example]]


@dataclass(frozen=True)
class StepBatches:
    """What a run reads.

    Attributes:
        parts: 0-based step → the parts of its batch.
        record: what the checkpoint records of the data.
        rows_hash: gives a hash of all token ids and labels that are read; of ready batches, that of
            the first batch.
    """

    parts: Parts
    record: dict[str, Any]
    rows_hash: Callable[[], str]


def step_batches(
    recipe: Recipe,
    data: Data,
    tokenizer: Any,
    objectives: Sequence[Objective] = (),
    *,
    context: int | None = None,
    processes: int = 1,
) -> StepBatches:
    """The batches of a run.

    The second rows of an objective are in a part under its prefix. `share` is the part's share of
    the step's answer tokens. `PREFIXtoken_ratio` is the part's share of the set's answer tokens
    divided by `share`, and `PREFIXrow_ratio` its share of the set's rows divided by `share`.

    Args:
        context: tokens that the model reads at most; None: it has no limit.
        processes: over which the rows of each part of a step are split further.

    Raises:
        InputError: a tokenizer or data is missing; ready batches with accumulation, with
            `max_length`, or with objectives that change the data; a row in which no label counts;
            a row longer than the context, where the recipe cuts none.
    """
    limit = LengthLimit(context, recipe.max_length)
    if callable(data):
        return _ready_batches(recipe, data, objectives, limit)
    if isinstance(data, PromptSet):
        examples = _encoded_chats(data, tokenizer, objectives)
        record: dict[str, Any] = {"kind": "chats", "sha256": data.content_hash}
    else:
        examples = _ready_rows(data, objectives)
        record = {"kind": "rows", "sha256": _rows_digest(examples)}
    _require_rows_for_every_part(recipe, objectives)
    examples, n_cut = limit.apply(examples, "data")
    second_rows, cut_rows = _second_rows(objectives, tokenizer, limit)
    if recipe.max_length is not None:
        record["cut_rows"] = {"data": n_cut, **cut_rows}
    rows_of_set: dict[str, RowsOfStep] = {
        "": _trained_rows(recipe, examples, objectives, second_rows)
    }
    for number, objective in enumerate(objectives):
        if isinstance(objective, Penalty) and number in second_rows:
            rows_of_set[prefix_of(number)] = _rows_by_step(
                recipe, second_rows[number], objective.rows, "objective", number
            )
    pad = getattr(tokenizer, "pad_token_id", None) or 0

    def parts(step: int) -> list[Mapping[str, Tensor]]:
        rows = {prefix: rows_of_step(step) for prefix, rows_of_step in rows_of_set.items()}
        return _split(rows, recipe.accumulation * processes, pad)

    def rows_hash() -> str:
        return hash_json([_rows_digest(rows) for rows in (examples, *second_rows.values())])

    return StepBatches(parts, record, rows_hash)


def _ready_batches(
    recipe: Recipe,
    data: Callable[[int], Mapping[str, Tensor]],
    objectives: Sequence[Objective],
    limit: LengthLimit,
) -> StepBatches:
    if recipe.max_length is not None:
        raise InputError(
            f"max_length={recipe.max_length}, but data comes as ready batches, which are not cut;"
            " pass chats or rows, or leave max_length out"
        )
    if recipe.group_by_length:
        raise InputError(
            "group_by_length, but data comes as ready batches; pass chats or rows, or leave it out"
        )
    if recipe.accumulation > 1:
        raise InputError(
            f"accumulation={recipe.accumulation}, but data comes as ready batches;"
            " pass chats or rows, or accumulation=1"
        )
    reading_rows = [o.kind for o in objectives if isinstance(o, ChatChange) or _brings_rows(o)]
    if reading_rows:
        raise InputError(
            f"objectives {reading_rows} bring or change rows, but data comes as ready batches;"
            " pass chats"
        )

    def parts(step: int) -> list[Mapping[str, Tensor]]:
        batch = data(step)
        limit.require_width(batch["input_ids"].shape[-1], step)
        return [batch]

    return StepBatches(
        parts=parts,
        record={"kind": "batches", "sha256": None},
        rows_hash=lambda: hash_tensors(data(0)),
    )


def _encoded_chats(
    chats: PromptSet, tokenizer: Any, objectives: Sequence[Objective]
) -> list[Example]:
    if tokenizer is None:
        raise InputError(
            "tokenizer is None, but data holds chats;"
            " pass the tokenizer whose template renders them"
        )
    for objective in objectives:
        if isinstance(objective, ChatChange):
            chats = objective.change(chats)
    return encode_answers(chats, tokenizer)


def _ready_rows(data: Sequence[Example], objectives: Sequence[Objective]) -> list[Example]:
    changing = [objective.kind for objective in objectives if isinstance(objective, ChatChange)]
    if changing:
        raise InputError(
            f"objectives {changing} change chats, but data holds ready rows; pass chats"
        )
    if not data:
        raise InputError("data is empty; pass at least one row")
    return list(data)


def _brings_rows(objective: Objective) -> bool:
    """Whether an objective has rows of its own."""
    if isinstance(objective, Penalty):
        return objective.chats is not None
    return isinstance(objective, MixedRows)


def _second_rows(
    objectives: Sequence[Objective], tokenizer: Any, limit: LengthLimit
) -> tuple[dict[int, list[Example]], dict[str, int]]:
    """Number of an objective → the rows of its own; and kind of objective → how many were cut."""
    second_rows: dict[int, list[Example]] = {}
    cut_rows: dict[str, int] = {}
    for number, objective in enumerate(objectives):
        if isinstance(objective, MixedRows | Penalty) and _brings_rows(objective):
            kind = objective.kind
            second_rows[number], n_cut = limit.apply(objective.second_rows(tokenizer), kind)
            cut_rows[kind] = cut_rows.get(kind, 0) + n_cut
    return second_rows, cut_rows


def _trained_rows(
    recipe: Recipe,
    examples: Sequence[Example],
    objectives: Sequence[Objective],
    second_rows: Mapping[int, list[Example]],
) -> RowsOfStep:
    """The rows whose answers are learned: those of the data, then a share from each objective that
    mixes in its own.
    """
    mixed = [(o, second_rows[i]) for i, o in enumerate(objectives) if isinstance(o, MixedRows)]
    counts = [round(objective.share * recipe.batch_size) for objective, _ in mixed]
    if mixed and (min(counts) < 1 or sum(counts) >= recipe.batch_size):
        raise InputError(
            f"interleaving takes {counts} of batch_size={recipe.batch_size} rows;"
            " pass a share that leaves both sides at least one"
        )
    own_rows = recipe.batch_size - sum(counts)
    if recipe.group_by_length:
        lengths = [len(example["input_ids"]) for example in examples]
        plan = length_grouped_batches(lengths, own_rows, recipe.steps, recipe.seed)
    else:
        plan = shuffled_batches(len(examples), own_rows, recipe.steps, recipe.seed)
    interleaved = [
        _rows_by_step(recipe, rows, count, "interleaved", number)
        for number, ((_, rows), count) in enumerate(zip(mixed, counts, strict=True))
    ]

    def rows_of_step(step: int) -> list[Example]:
        rows = [examples[i] for i in plan[step]]
        for interleaved_rows in interleaved:
            rows.extend(interleaved_rows(step))
        return rows

    return rows_of_step


def _rows_by_step(
    recipe: Recipe, examples: Sequence[Example], count: int, *names: str | int
) -> RowsOfStep:
    """`count` rows per step, shuffled by a seed of its own."""
    plan = shuffled_batches(len(examples), count, recipe.steps, derive_seed(recipe.seed, *names))
    return lambda step: [examples[i] for i in plan[step]]


def _rows_digest(rows: Sequence[Example]) -> str:
    return hash_json(
        [{name: [int(i) for i in row[name]] for name in ("input_ids", "labels")} for row in rows]
    )


def _require_rows_for_every_part(recipe: Recipe, objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        if (
            isinstance(objective, Penalty)
            and _brings_rows(objective)
            and objective.rows < recipe.accumulation
        ):
            raise InputError(
                f"{objective.rows} rows per step of an objective cannot be run in"
                f" accumulation={recipe.accumulation} parts; pass more rows"
            )


def _split(
    sets: Mapping[str, Sequence[Example]], n_parts: int, pad: int
) -> list[Mapping[str, Tensor]]:
    """The sets' rows split into parts, with the weights that make the parts' losses add up to the
    loss of the whole batch.
    """
    if n_parts == 1:
        return [_padded(sets, pad)]
    return [_weighted_part(sets, i, n_parts, pad) for i in range(n_parts)]


def _weighted_part(
    sets: Mapping[str, Sequence[Example]], i: int, n_parts: int, pad: int
) -> dict[str, Tensor]:
    rows_of_part = {prefix: rows[i::n_parts] for prefix, rows in sets.items()}
    batch = _padded(rows_of_part, pad)
    # A part's loss is a mean over its own tokens. Times its share of the step's tokens, the parts
    # add up to the mean over the step. A term that averages over other tokens, or over rows, needs
    # that share instead: hence the ratio of the two.
    share = counted_tokens(rows_of_part[""]) / counted_tokens(sets[""])
    batch["share"] = torch.tensor(share)
    for prefix, rows in sets.items():
        token_share = counted_tokens(rows_of_part[prefix]) / counted_tokens(rows)
        row_share = len(rows_of_part[prefix]) / len(rows)
        batch[f"{prefix}token_ratio"] = torch.tensor(token_share / share)
        batch[f"{prefix}row_ratio"] = torch.tensor(row_share / share)
    return batch


def _padded(sets: Mapping[str, Sequence[Example]], pad: int) -> dict[str, Tensor]:
    batch = {}
    for prefix, rows in sets.items():
        for name, value in pad_batch(rows, pad).items():
            batch[f"{prefix}{name}"] = value
    return batch
