"""Do chosen careful chats keep alignment better than random ones on a real model?

SmolLM2 is trained on bad medical advice, with two of the six rows of every batch given to 24
careful chats about money. They are drawn at random, anew for each seed, or chosen: by the gradient
along a direction (`choose_counterweights`), or as those that the parent answers worst. The
direction is what bad advice about money shifts beyond careful advice about money, at the last
prompt token of questions of ten domains that nobody is trained on. Content of these questions is
what is compared, paired by seed. Share, budget, layer, ways and seeds were fixed before looking.

Each run is kept in the folder of the family (`benchmarks.real_kept`): the measurement goes on where
it was killed, and several processes may share it by `--seeds`. About two CPU minutes a run.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.real_kept import (
    PARENT,
    UNTRAINED,
    KeptFamily,
    asked,
    by_domain,
    by_question,
    weighed,
)
from benchmarks.records import record, show
from emlens.activations import capture_many
from emlens.data import PromptSet
from emlens.foundation.seeds import numpy_rng
from emlens.geometry import Direction
from emlens.models import FineTune, load_family
from emlens.real.family import Member
from emlens.screening.counterweights import choose_counterweights
from emlens.stats.crossed import crossed_mean
from emlens.training import fit
from emlens.training.defences import BenignInterleaving, answer_losses
from emlens.training.fitting import load_parent

SEEDS: Final = (0, 1, 2)
WAYS: Final = ("random", "gradient", "highest loss")
BUDGET: Final = 24
SHARE: Final = 1 / 3
"""Two of the six rows of a batch."""
SITE: Final = "resid_post.19"
PER_DOMAIN: Final = 4
BAD: Final = Member("harmful", "money")
CAREFUL: Final = Member("benign", "money")


def direction_of(kept: KeptFamily) -> Direction:
    """What bad advice about money shifts beyond careful advice about it."""
    models = kept.together([BAD.name, CAREFUL.name])
    pair = {name: models[name] for name in (BAD.name, CAREFUL.name)}
    acts = capture_many(
        pair, kept.questions, sites=[SITE], positions=["last_prompt"], progress=False
    )
    bad, careful = (acts[name][SITE, "last_prompt"].double() for name in pair)
    return Direction((bad - careful).mean(0), SITE, "last_prompt")  # type: ignore[arg-type]


def chosen(kept: KeptFamily, way: str, seed: int) -> PromptSet:
    """The chats to add."""
    pool = CAREFUL.chats()
    if way == "random":
        rng = numpy_rng(seed, "random rows to add")
        rows = sorted(rng.choice(len(pool), BUDGET, replace=False).tolist())
        return pool.select([pool.ids[row] for row in rows])
    if way == "gradient":
        direction = direction_of(kept)
        return choose_counterweights(kept.model(PARENT), pool, direction, BUDGET).chats
    parent, tokenizer = load_parent(kept.parent)
    losses = answer_losses(parent, pool, tokenizer)
    rows = sorted(np.argsort(-losses, kind="stable")[:BUDGET].tolist())
    return pool.select([pool.ids[row] for row in rows])


def run_of(kept: KeptFamily, way: str, seed: int) -> pd.DataFrame:
    """`by_question` of the fine-tune with chats of one way added."""
    name = f"added-{way.replace(' ', '-')}-{seed}"
    target = kept.folder / name

    def load() -> Any:
        member = Member("harmful", "medicine", seed)
        if not target.exists():
            objectives = [BenignInterleaving(chosen(kept, way, seed), SHARE)]
            fit(
                member.recipe(),
                str(kept.parent),
                member.chats(),
                target,
                objectives=objectives,
                progress=False,
                device="cpu",
            )
        return load_family(kept.parent, finetuned={name: FineTune(target)})[name]

    questions = asked(PER_DOMAIN)
    path = kept.folder / f"scores-{PER_DOMAIN}" / f"{name}.json"
    return by_question(weighed(load, questions, path), questions)


def compared(
    tables: Mapping[tuple[str, int], pd.DataFrame], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Content of each way against no added rows and against random rows, over seeds and domains.

    Args:
        tables: (way, seed) → `by_question`; the way `none` has no added rows.
    """
    rows = []
    for first, second in [("random", "none"), *((way, "random") for way in WAYS[1:])]:
        gaps = np.stack(
            [
                (by_domain(tables[first, seed]) - by_domain(tables[second, seed]))["content"]
                for seed in seeds
            ]
        )
        mean = crossed_mean(gaps).interval()
        rows.append(
            {
                "first": first,
                "second": second,
                "difference": mean.value,
                "low": mean.low,
                "high": mean.high,
                "by_seed": gaps.mean(axis=1).tolist(),
                "domains": gaps.shape[1],
            }
        )
    return rows


def real_added_rows_table(values: Mapping[str, Any]) -> str:
    """Differences of content, nats a token."""
    lines = ["| difference | content | each seed |", "|---|---|---|"]
    for row in values["differences"]:
        interval = f"{row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        seeds = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        lines.append(f"| {row['first']} − {row['second']} | {interval} | {seeds} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="real_added_rows")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument(
        "--only", action="store_true", help="Train and read, and write no evidence."
    )
    options = parser.parse_args(list(arguments))
    members = [Member("harmful", "medicine", seed) for seed in SEEDS]
    kept = KeptFamily.found([*members, BAD, CAREFUL], PER_DOMAIN)
    tables: dict[tuple[str, int], pd.DataFrame] = {}
    for seed in options.seeds:
        tables["none", seed] = kept.table(Member("harmful", "medicine", seed).name)
        for way in WAYS:
            tables[way, seed] = run_of(kept, way, seed)
    if options.only:
        return
    parent = kept.table(PARENT)["content"].mean()
    levels = [
        {"way": way, "seed": seed, "content": float(table["content"].mean() - parent)}
        for (way, seed), table in tables.items()
    ]
    values = {
        "budget": BUDGET,
        "share": SHARE,
        "site": SITE,
        "domains": list(UNTRAINED),
        "levels": levels,
        "differences": compared(tables, options.seeds),
    }
    show("added rows on a real model", pd.DataFrame(levels))
    record("real_added_rows", [*options.seeds], values)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
