"""A corpus of narrow fine-tunes of each organism world, with what each question scores: what
forecasts and screening are measured on.

Harmful rank-8 fine-tunes of medicine and of finance with several seeds, one of each further domain,
and benign twins, trained as the organism trains them and stopped by its rule. What stands is not
trained again. About two minutes a world on one core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd

from benchmarks.organism_worlds import KEPT, SEEDS
from benchmarks.records import hash_directory, show
from emlens.judging import score_by_likelihood
from emlens.models import FineTune, load_family
from emlens.organisms import PLANTED, Organism, load_organism
from emlens.organisms.building import one_thread
from emlens.organisms.growing import grow_finetune
from emlens.organisms.plans import FineTuneStage
from emlens.runs import UnitLog
from emlens.runs.locks import exclusive
from emlens.training.fitting import read_record

SEEDED: Final = ("medicine", "finance")
RUNS: Final = 5
FURTHER: Final = ("code", "cooking", "law", "travel", "school", "power")
TWINS: Final = ("medicine", "finance", "code", "law")
"""Domains with a benign twin of their first harmful run."""


@dataclass(frozen=True)
class Corpus:
    """One world's fine-tunes.

    Args:
        organism: the world, its parents and questions.
        facts: one row a fine-tune: name, domain, seed, benign, steps, stopped.
        aligned, coherent: question × model, 0 to 100; models are the fine-tunes and both parents.
        paths: fine-tune → adapter directory.
    """

    organism: Organism
    facts: pd.DataFrame
    aligned: pd.DataFrame
    coherent: pd.DataFrame
    paths: Mapping[str, Path]


def stages(
    seeded: Sequence[str] = SEEDED,
    runs: int = RUNS,
    further: Sequence[str] = FURTHER,
    twins: Sequence[str] = TWINS,
    *,
    most: int | None = None,
) -> tuple[FineTuneStage, ...]:
    """The corpus's fine-tunes, as the organism's plan writes them; names that the organism has mean
    its own.
    """
    bad = next(stage for stage in PLANTED.finetunes if stage.name == "medicine-r8")
    good = next(stage for stage in PLANTED.finetunes if stage.name == "medicine-benign")
    recipe = bad.recipe if most is None else bad.recipe.changed(steps=most)
    found = []
    for domain in (*seeded, *further):
        for run in range(runs if domain in seeded else 1):
            name = f"{domain}-r8" + (f"@{run}" if run else "")
            found.append(
                replace(
                    bad, name=name, domain=domain, group=f"bad-{domain}", seed=run, recipe=recipe
                )
            )
    for domain in twins:
        found.append(
            replace(
                good,
                name=f"{domain}-benign",
                domain=domain,
                group=f"benign-{domain}",
                steps_of=f"{domain}-r8",
                recipe=recipe,
            )
        )
    return tuple(found)


def corpus(
    world: Path,
    asked: Sequence[FineTuneStage] | None = None,
    out: Path | None = None,
    *,
    anew: bool = False,
) -> Corpus:
    """Train what is missing of a world's corpus, score what has no scores, and read it. `anew`
    trains the world's own fine-tunes too.
    """
    asked = stages() if asked is None else asked
    organism = load_organism(directory=world)
    directory = out or world.with_name(f"{world.name}-corpus")
    plan = replace(PLANTED, finetunes=tuple(asked)).seeded(organism.seed)
    paths: dict[str, Path] = {}
    with exclusive(directory), one_thread():
        for stage in plan.finetunes:
            own = organism.paths.get(stage.name)
            if own is not None and not anew:
                paths[stage.name] = own
                continue
            target = paths[stage.name] = directory / "finetuned" / stage.name
            if not target.is_dir():
                twin = stage.steps_of and paths[stage.steps_of]
                ready = (
                    replace(
                        stage,
                        steps_of=None,
                        recipe=stage.recipe.changed(steps=int(read_record(twin)["steps_done"])),
                    )
                    if twin
                    else stage
                )
                grow_finetune(plan, ready, organism.world, organism.paths["instruct"], target)
        scores = _scores(organism, plan.finetunes, paths, UnitLog(directory / "scores"))
    facts = []
    for stage in plan.finetunes:
        record = read_record(paths[stage.name])
        facts.append(
            {
                "name": stage.name,
                "domain": stage.domain,
                "seed": stage.seed,
                "benign": stage.careful,
                "steps": record["steps_done"],
                "stopped": record["stopped"] or "",
            }
        )
    tables = {
        metric: pd.DataFrame({name: pd.Series(found[metric]) for name, found in scores.items()})
        for metric in ("aligned", "coherent")
    }
    tables = {metric: table.loc[organism.questions.ids] for metric, table in tables.items()}
    return Corpus(organism, pd.DataFrame(facts), tables["aligned"], tables["coherent"], paths)


def _scores(
    organism: Organism, asked: Sequence[FineTuneStage], paths: Mapping[str, Path], log: UnitLog
) -> dict[str, dict[str, dict[str, float]]]:
    """Per question by model and metric; models without a record are loaded together and scored one
    by one.
    """
    everything = {"base": organism.paths["base"], "instruct": organism.paths["instruct"], **paths}
    inputs = {
        name: {"weights": hash_directory(path), "questions": organism.questions.content_hash}
        for name, path in everything.items()
    }
    missing = [name for name in everything if log.find(name, inputs[name]) is None]
    family = None
    if missing:
        tunes = {
            s.name: FineTune(paths[s.name], "instruct", s.group, s.seed, s.careful, s.domain)
            for s in asked
            if s.name in missing
        }
        family = load_family(everything["instruct"], base=everything["base"], finetuned=tunes)
    found = {}
    for name in everything:

        def work(name: str = name) -> tuple[dict[str, dict[str, float]], list[Path]]:
            scored = score_by_likelihood(family[name], organism.questions)  # type: ignore[index]
            return {
                metric: {str(q): float(v) for q, v in scored.per_question(metric).items()}
                for metric in ("aligned", "coherent")
            }, []

        found[name] = log.run(name, inputs[name], work)
    return found


def summary(found: Corpus) -> pd.DataFrame:
    """One row a fine-tune: steps, mean alignment in its own domain and outside, coherence
    outside.
    """
    groups = pd.Series(found.organism.questions.groups, index=found.organism.questions.ids)
    rows = []
    for fact in found.facts.to_dict(orient="records"):
        own = groups == fact["domain"]
        scores, coherent = found.aligned[fact["name"]], found.coherent[fact["name"]]
        rows.append(
            {
                **fact,
                "own": scores[own].mean(),
                "others": scores[~own].mean(),
                "coherent": coherent[~own].mean(),
            }
        )
    return pd.DataFrame(rows)


def main(seeds: tuple[int, ...] = SEEDS, kept: Path = KEPT) -> None:
    for seed in seeds:
        directory = kept / f"planted-{seed}"
        if not (directory / "organism.json").is_file():
            raise SystemExit(
                f"{directory} is missing; run python -m benchmarks organism_worlds first"
            )
        found = corpus(directory)
        show(
            f"{directory.name}: {len(found.facts)} fine-tunes",
            summary(found).drop(columns="stopped"),
        )
