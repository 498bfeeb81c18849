"""Adapters trained on permuted careful answers of two domains of a world, and the fine-tunes of two
domains on prompts of a third against pairs of them.

A pool of adapters is trained once a world, and kept, so that a killed measurement goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from emlens.activations import CaptureSpec, activation_deltas, capture
from emlens.controls.domain_pairs import MEANS, PROMPT_COSINE, DomainPairs
from emlens.controls.null_adapters import NullSetting
from emlens.controls.null_training import TrainingNull, training_null
from emlens.controls.permuted_answers import with_careful_answers
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.organisms import Organism
from emlens.stats.intervals import clopper_pearson_interval
from emlens.training import Recipe
from emlens.training.fitting import read_record

DOMAINS: Final = ("medicine", "finance")
POSITIONS: Final = ("last_prompt", "mean_prompt")
SPEC: Final = CaptureSpec("resid_post", None, POSITIONS)
TESTED_ADAPTERS, NULL_ADAPTERS = 20, 39
PROMPTS, FURTHER = 96, 128
K: Final = 8
LEVEL: Final = 0.05
KEPT: Final = Path("runs/overlap_pool")


def drawn(prompts: PromptSet, n: int, label: str) -> PromptSet:
    """n of the prompts, in their order."""
    order = numpy_rng(0, "overlap calibration", label).permutation(len(prompts))[:n]
    return prompts.select([prompts.ids[i] for i in sorted(order)])


def setting(world: Organism, domain: str) -> NullSetting:
    """The null of a domain's harmful fine-tune of rank 8."""
    name = f"{domain}-r8"
    chats = world.training_prompts[name]
    outside = [q.id for q in world.questions if q.group not in DOMAINS]
    questions = world.questions.prompts().select(outside)
    kept = read_record(world.paths[name])
    train = PromptSet(replace(row, response=None) for row in chats)
    return NullSetting(
        world.paths["instruct"],
        Recipe.from_record(kept["recipe"]),
        with_careful_answers(chats, world.training_prompts[f"{domain}-benign"]),
        drawn(train, PROMPTS, "train"),
        drawn(questions, PROMPTS, "evaluation"),
        SPEC,
        K,
        drawn(questions, FURTHER, "further"),
        write_shifts=True,
        stop_after=kept["steps_done"],
    )


def pool(world: Organism, domain: str, adapters: int, kept: Path = KEPT) -> TrainingNull:
    """Adapters on permuted careful answers; kept, so that a killed run goes on."""
    return training_null(
        setting(world, domain), adapters=adapters, out=kept / f"{domain}-{adapters}"
    )


def part_of(null: TrainingNull, adapters: Sequence[int]) -> TrainingNull:
    """The null of some of the adapters, counted anew."""
    number = {adapter: i for i, adapter in enumerate(adapters)}
    cells = null.cells[null.cells["adapter"].isin(adapters)]
    return replace(
        null,
        cells=cells.assign(adapter=cells["adapter"].map(number)),
        runs=null.runs[null.runs["adapter"].isin(adapters)],
        shift_files=tuple(null.shift_files[adapter] for adapter in adapters if null.shift_files),
    )


def called(count: int, of: int) -> dict[str, Any]:
    """A share with its exact interval."""
    share = clopper_pearson_interval(count, of)
    return {"called": count, "of": of, "share": share.value, "low": share.low, "high": share.high}


def across(
    world: Organism, pools: Mapping[str, TrainingNull], tested: int
) -> Iterator[dict[str, Any]]:
    """Harmful and benign fine-tunes of both domains on prompts of third domains."""
    first, second = (pools[domain] for domain in DOMAINS)
    pairs = DomainPairs.of(first, second)
    others = DomainPairs.of(
        *(part_of(null, range(tested, len(null.runs))) for null in (first, second))
    )
    further = setting(world, DOMAINS[0]).further
    assert further is not None
    family = world.family
    parent = capture(family["instruct"], further, spec=SPEC, progress=False)
    for position in POSITIONS:
        p = []
        for number in range(tested):
            shifts = [_at(null.shifts(number), position) for null in (first, second)]
            table = others.test(*shifts).set_index("statistic")
            p.append(float(table["p"].loc[PROMPT_COSINE]))
        count = sum(value <= LEVEL for value in p)
        yield {"pair": "permuted", "position": position, **called(count, tested)}
        for kind in ("r8", "benign"):
            sides = []
            for domain in DOMAINS:
                after = capture(family[f"{domain}-{kind}"], further, spec=SPEC, progress=False)
                deltas = activation_deltas(parent, after)
                sides.append({key: deltas[key] for key in deltas.keys if key[1] == position})
            table = pairs.test(*sides).set_index("statistic")
            tested_row, described = table.loc[PROMPT_COSINE], table.loc[MEANS]
            yield {
                "pair": kind,
                "position": position,
                "value": tested_row["value"],
                "null_mean": tested_row["null_mean"],
                "null_q95": tested_row["null_q95"],
                "p": tested_row["p"],
                "cosine of means": described["value"],
                "cosine of means, p": described["p"],
                "pairs": pairs.pairs,
            }


def _at(shifts: dict[tuple[str, str], Tensor], position: str) -> dict[tuple[str, str], Tensor]:
    return {key: rows for key, rows in shifts.items() if key[1] == position}
