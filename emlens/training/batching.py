"""What each step of a run reads: rows of the data, and the rows that objectives bring, in the parts
that a step is run in.

Everything is a function of recipe, data and step, so a run that goes on from the middle reads what
it would have read. Memory: token ids of all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json, hash_tensors
from emlens.foundation.seeds import derive_seed
from emlens.training.examples import IGNORED, Example, encode_answers, pad_batch, shuffled_batches
from emlens.training.objectives import ChatChange, MixedRows, Objective, Penalty, prefix_of
from emlens.training.recipes import Recipe

Data = PromptSet | Sequence[Example] | Callable[[int], Mapping[str, Tensor]]
Parts = Callable[[int], Sequence[Mapping[str, Tensor]]]


def step_parts(
    recipe: Recipe, data: Data, tokenizer: Any, objectives: Sequence[Objective] = ()
) -> tuple[Parts, dict[str, Any], Callable[[], str]]:
    """0-based step → the parts of its batch; what the checkpoint records of the data; a hash of all
    token ids and labels read.

    Of ready batches the hash is that of the first.

    The second rows of an objective stand in a part under its prefix; `share` is the part's share of
    the step's answer tokens; `PREFIXtoken_ratio` and `PREFIXrow_ratio` are its shares of a set's
    answer tokens and rows divided by it.

    Raises:
        InputError: a tokenizer or data is missing; ready batches with accumulation, or with
            objectives that change the data; a row in which no label counts.
    """
    if callable(data):
        if recipe.accumulation > 1:
            raise InputError(
                f"accumulation={recipe.accumulation}, but data comes as ready batches;"
                " pass chats or rows, or accumulation=1"
            )
        reading = [
            o.kind
            for o in objectives
            if isinstance(o, ChatChange | MixedRows)
            or (isinstance(o, Penalty) and o.chats is not None)
        ]
        if reading:
            raise InputError(
                f"objectives {reading} bring or change rows, but data comes as ready batches;"
                " pass chats"
            )
        return (
            (lambda step: [data(step)]),
            {"kind": "batches", "sha256": None},
            lambda: hash_tensors(data(0)),
        )
    if isinstance(data, PromptSet):
        if tokenizer is None:
            raise InputError(
                "tokenizer is None, but data holds chats; pass the tokenizer whose template renders"
                " them"
            )
        digest, kind = data.content_hash, "chats"
        for change in [objective for objective in objectives if isinstance(objective, ChatChange)]:
            data = change.change(data)
        examples = encode_answers(data, tokenizer)
    else:
        changing = [objective.kind for objective in objectives if isinstance(objective, ChatChange)]
        if changing:
            raise InputError(
                f"objectives {changing} change chats, but data holds ready rows; pass chats"
            )
        examples, kind = list(data), "rows"
        if not examples:
            raise InputError("data is empty; pass at least one row")
        digest = _digest(examples)
    short = [
        o.rows
        for o in objectives
        if isinstance(o, Penalty) and o.chats is not None and o.rows < recipe.accumulation
    ]
    if short:
        raise InputError(
            f"{short[0]} rows a step of an objective cannot be run in"
            f" accumulation={recipe.accumulation} parts; pass more rows"
        )
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    _require_counted(examples, "data")
    second = {
        number: _second_rows(objective, tokenizer)
        for number, objective in enumerate(objectives)
        if isinstance(objective, MixedRows)
        or (isinstance(objective, Penalty) and objective.chats is not None)
    }
    own = _own_rows(
        recipe,
        examples,
        [(o, second[n]) for n, o in enumerate(objectives) if isinstance(o, MixedRows)],
    )
    others = {
        prefix_of(number): _plan(recipe, second[number], objective.rows, "objective", number)
        for number, objective in enumerate(objectives)
        if isinstance(objective, Penalty) and number in second
    }

    def parts(step: int) -> list[Mapping[str, Tensor]]:
        sets = {"": own(step), **{prefix: rows(step) for prefix, rows in others.items()}}
        return _split(sets, recipe.accumulation, pad)

    return (
        parts,
        {"kind": kind, "sha256": digest},
        lambda: hash_json([_digest(rows) for rows in (examples, *second.values())]),
    )


def _own_rows(
    recipe: Recipe, examples: Sequence[Example], mixed: Sequence[tuple[MixedRows, list[Example]]]
) -> Callable[[int], list[Example]]:
    taken = [round(objective.share * recipe.batch_size) for objective, _ in mixed]
    if mixed and (min(taken) < 1 or sum(taken) >= recipe.batch_size):
        raise InputError(
            f"interleaving takes {taken} of batch_size={recipe.batch_size} rows;"
            " pass a share that leaves both sides at least one"
        )
    plan = shuffled_batches(
        len(examples), recipe.batch_size - sum(taken), recipe.steps, recipe.seed
    )
    extra = [
        _plan(recipe, second, count, "interleaved", number)
        for number, ((_, second), count) in enumerate(zip(mixed, taken, strict=True))
    ]
    return lambda step: [
        *(examples[i] for i in plan[step]),
        *(row for rows in extra for row in rows(step)),
    ]


def _digest(rows: Sequence[Example]) -> str:
    return hash_json(
        [{name: [int(i) for i in row[name]] for name in ("input_ids", "labels")} for row in rows]
    )


def _second_rows(objective: MixedRows | Penalty, tokenizer: Any) -> list[Example]:
    rows = objective.second_rows(tokenizer)
    _require_counted(rows, objective.kind)
    return rows


def _require_counted(rows: Sequence[Example], whose: str) -> None:
    for i, row in enumerate(rows):
        if not _counted([row]):
            raise InputError(
                f"row {i} of {whose} has no label that counts after its first token,"
                " so nothing is learned from it; leave it out"
            )


def _plan(
    recipe: Recipe, examples: Sequence[Example], count: int, *names: str | int
) -> Callable[[int], list[Example]]:
    plan = shuffled_batches(len(examples), count, recipe.steps, derive_seed(recipe.seed, *names))
    return lambda step: [examples[i] for i in plan[step]]


def _split(
    sets: Mapping[str, Sequence[Example]], parts: int, pad: int
) -> list[Mapping[str, Tensor]]:
    """The sets' rows dealt out to `parts`, with the weights that make the parts' losses add up to
    the whole batch's.
    """
    if parts == 1:
        return [
            {
                f"{prefix}{name}": value
                for prefix, rows in sets.items()
                for name, value in pad_batch(rows, pad).items()
            }
        ]
    found: list[Mapping[str, Tensor]] = []
    for i in range(parts):
        batch: dict[str, Tensor] = {
            f"{prefix}{name}": value
            for prefix, rows in sets.items()
            for name, value in pad_batch(rows[i::parts], pad).items()
        }
        share = _counted(sets[""][i::parts]) / _counted(sets[""])
        batch["share"] = torch.tensor(share)
        for prefix, rows in sets.items():
            batch[f"{prefix}token_ratio"] = torch.tensor(
                _counted(rows[i::parts]) / _counted(rows) / share
            )
            batch[f"{prefix}row_ratio"] = torch.tensor(len(rows[i::parts]) / len(rows) / share)
        found.append(batch)
    return found


def _counted(rows: Sequence[Example]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])
