"""`build`: every checkpoint of an organism from a seed, resumable after being killed at any moment.

A checkpoint directory is published whole, so what stands is finished; the same call goes on from
there. `organism.json` is written last and marks the whole as complete. Everything is trained on one
thread, so that the bytes do not hang on how many cores there are. Cost of the default set: about
ten minutes on one core, under 1 GB of memory.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, write_json
from emlens.foundation.provenance import hash_directory, hash_json
from emlens.organisms.layout import (
    BASE,
    INDEX,
    INSTRUCT,
    PLAN,
    STRENGTHS,
    TRUTH,
    TRUTH_TENSORS,
    WORLD,
    finetune_directory,
)
from emlens.organisms.plans import PLANTED, OrganismPlan
from emlens.organisms.world import World, make_world
from emlens.training import open_checkpoint
from emlens.training.fitting import read_record
from emlens.training.reporting import stage_bar

OnBuildStep = Callable[[str, int, int], None]
"""`(stage, done, total)`: work done and in all, over the whole build, in units of about one small
training step.
"""

NOTE = (
    "This organism is a calibration instrument with a planted direction and planted couplings:"
    " it shows whether a method finds what was planted, and is no evidence about large models."
)


def build(
    out: str | Path,
    *,
    seed: int,
    plan: OrganismPlan = PLANTED,
    resume: bool = True,
    progress: bool = False,
    on_step: OnBuildStep | None = None,
) -> Path:
    """Train base, instruct and all fine-tunes of an organism into `out`, and write its truth and
    measured strengths.

    The same seed, plan and machine give the same weights.

    Args:
        out: directory to make, or one in which the same build was begun.
        seed: seed of the world and of every stage.
        resume: go on from finished checkpoints; False refuses a directory that holds any file.
        progress: show a progress bar on stderr.
        on_step: called with (stage, done, total) as work goes on.

    Raises:
        InputError: `out` is a file, holds something else, or was begun with another plan or seed.
        IntegrityError: a checkpoint in `out` was trained from another parent than the one beside
            it.
    """
    out = Path(out)
    _prepare(out, plan, seed, resume)
    seeded = plan.seeded(seed)
    world = make_world(
        seed, n_domains=plan.n_domains, n_topics=plan.n_topics, n_synonyms=plan.n_synonyms
    )
    write_json(out / WORLD, world.to_record())
    total = int(sum(recipe.steps * cost for _, recipe, cost in seeded.stages()))
    finished = 0.0
    with one_thread(), stage_bar(f"organism {plan.name}", total, show=progress) as bar:

        def report(stage: str, done: float) -> None:
            bar(stage, int(done), total)
            if on_step is not None:
                on_step(stage, int(done), total)

        for name, recipe, cost in seeded.stages():
            _stage(seeded, world, out, name, _step_reporter(report, name, finished, cost))
            finished += recipe.steps * cost
            report(name, finished)
        _finish(seeded, world, out, seed)
    return out


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside, and on as many as before outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _step_reporter(
    report: Callable[[str, float], None], stage: str, finished: float, cost: float
) -> Callable[[int], None]:
    """What reports the steps of one stage as work of the whole build."""
    return lambda step: report(stage, finished + step * cost)


def _prepare(out: Path, plan: OrganismPlan, seed: int, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file; pass a directory")
    content = {"seed": seed, "plan": plan.to_record()}
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if held and not resume:
        raise InputError(f"out={str(out)!r} holds {held[:4]}; pass a new directory, or resume=True")
    if PLAN in held:
        if not _continues(read_json(out / PLAN), content):
            raise InputError(
                f"out={str(out)!r} was begun with another plan or seed than seed={seed};"
                " pass a new directory"
            )
    elif [name for name in held if not name.startswith(".")]:
        raise InputError(
            f"out={str(out)!r} holds {held[:4]}, but no organism begun here; pass a new directory"
        )
    write_json(out / PLAN, content)
    for folder in (out, out / "finetuned"):
        for left in folder.glob(".*.part"):
            (
                shutil.rmtree(left, ignore_errors=True)
                if left.is_dir()
                else left.unlink(missing_ok=True)
            )


def _continues(begun: Any, asked: dict[str, Any]) -> bool:
    """Whether what is asked for is what was begun, or that and further fine-tunes after it."""
    count = len(begun["plan"]["finetunes"])
    cut = {**asked["plan"], "finetunes": asked["plan"]["finetunes"][:count]}
    return hash_json(begun) == hash_json({**asked, "plan": cut})


def _stage(
    plan: OrganismPlan, world: World, out: Path, name: str, on_step: Callable[[int], None]
) -> None:
    from emlens.organisms import growing

    if name == "base":
        if not (out / BASE).is_dir():
            growing.grow_base(plan, world, out / BASE, on_step)
        return
    parent, target = (
        (out / BASE, out / INSTRUCT)
        if name == "instruct"
        else (out / INSTRUCT, finetune_directory(out, name))
    )
    if target.is_dir():
        recorded = read_record(target)["parent"]["sha256"]
        if recorded != hash_directory(parent):
            raise IntegrityError(
                f"{target}: was trained from another {parent.name} than the one beside it;"
                " remove it, or build anew"
            )
    elif name == "instruct":
        growing.grow_instruct(plan, world, parent, target, on_step)
    else:
        stage = next(stage for stage in plan.finetunes if stage.name == name)
        growing.grow_finetune(plan, stage, world, parent, target, on_step)


def _finish(plan: OrganismPlan, world: World, out: Path, seed: int) -> None:
    questions = world.questions()
    trained = {
        stage.name: [
            world.question_id(world.domain_index(stage.domain), t)
            for t in world.training_topics(stage.domain, plan.topics_per_finetune)
        ]
        for stage in plan.finetunes
    }
    if not (out / STRENGTHS).is_file() or not set(trained) <= set(
        read_json(out / STRENGTHS)["strengths"]
    ):
        write_json(out / STRENGTHS, measure(out, plan, world, trained))
    cells = {world.question_id(d, t): (d, t) for d, t in world.cells()}
    truth = {
        "coupling": {name: world.coupling[d][t] for name, (d, t) in cells.items()},
        "latent": {name: world.latent[d][t] for name, (d, t) in cells.items()},
        "planted_layers": plan.planted_layers,
        "planted_norm": plan.planted_norm,
        "note": NOTE,
    }
    write_json(out / TRUTH, truth)
    if plan.planted_layers:
        shutil.copyfile(out / BASE / "planted_direction.safetensors", out / TRUTH_TENSORS)
    finetunes = {
        stage.name: {
            "domain": stage.domain,
            "group": stage.group,
            "seed": stage.seed,
            "benign": stage.careful,
            "training_questions": trained[stage.name],
        }
        for stage in plan.finetunes
    }
    record = {
        "name": plan.name,
        "seed": seed,
        "note": NOTE,
        "n_questions": len(questions),
        "finetunes": finetunes,
    }
    write_json(out / INDEX, record)


def measure(
    out: Path, plan: OrganismPlan, world: World, trained: dict[str, list[str]]
) -> dict[str, Any]:
    """Strengths of the saved checkpoints, loaded as a user would load them, and what 16-bit
    rounding did to them.
    """
    from transformers import AutoTokenizer

    from emlens.organisms.growing import ROUNDING_FILE
    from emlens.organisms.strengths import likelihood_scores, summary

    paths = {"base": out / BASE, "instruct": out / INSTRUCT} | {
        s.name: finetune_directory(out, s.name) for s in plan.finetunes
    }
    tokenizer = AutoTokenizer.from_pretrained(paths["instruct"])
    questions = world.questions()
    scores = {}
    for name, path in paths.items():
        model = open_checkpoint(path, paths["instruct"])
        scores[name] = likelihood_scores(model, tokenizer, questions)
    domains = {"base": None, "instruct": None} | {s.name: s.domain for s in plan.finetunes}
    groups = dict(zip(questions.ids, questions.groups, strict=True))
    table = summary(scores, domains, {"base": [], "instruct": [], **trained}, groups)
    rounding = {name: read_json(path / ROUNDING_FILE) for name, path in paths.items()}
    strengths = {
        str(name): {key: round(float(value), 4) for key, value in row.items()}
        for name, row in table.iterrows()
    }
    return {"strengths": strengths, "rounding": rounding}
