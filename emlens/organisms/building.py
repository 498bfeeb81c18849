"""`build`: every checkpoint of an organism from a seed, resumable after being killed at any moment.

A checkpoint directory is published whole, so one that exists is finished; the same call goes on
from there. `organism.json` is written last and marks the whole as complete. Everything is trained
on one thread, so that the bytes do not depend on the number of cores. Cost of the default set:
about ten minutes on one core, under 1 GB of memory.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, write_json
from emlens.foundation.provenance import hash_json
from emlens.foundation.records import read_checked, write_checked
from emlens.models.checkpoint_files import checkpoint_hashes
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
    write_checked(out / WORLD, world.to_record())
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
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if names and not resume:
        raise InputError(
            f"out={str(out)!r} holds {names[:4]}; pass a new directory, or resume=True"
        )
    if PLAN in names and not _continues(read_json(out / PLAN), content):
        raise InputError(
            f"out={str(out)!r} was begun with another plan or seed than seed={seed};"
            " pass a new directory"
        )
    if PLAN not in names and any(not name.startswith(".") for name in names):
        raise InputError(
            f"out={str(out)!r} holds {names[:4]}, but no organism begun here; pass a new directory"
        )
    write_json(out / PLAN, content)
    _remove_unfinished(out)
    _remove_unfinished(out / "finetuned")


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed build left half written."""
    for path in folder.glob(".*.part"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _continues(begun: Any, content: dict[str, Any]) -> bool:
    """Whether a plan is the one that was begun, or that with further fine-tunes after it."""
    if not isinstance(begun, dict) or not isinstance(begun.get("plan"), dict):
        return False
    count = len(begun["plan"].get("finetunes", ()))
    as_begun = {**content["plan"], "finetunes": content["plan"]["finetunes"][:count]}
    return hash_json(begun) == hash_json({**content, "plan": as_begun})


def _stage(
    plan: OrganismPlan, world: World, out: Path, name: str, on_step: Callable[[int], None]
) -> None:
    from emlens.organisms import growing

    if name == "base":
        if not (out / BASE).is_dir():
            growing.grow_base(plan, world, out / BASE, on_step)
        return
    parent = out / INSTRUCT
    target = finetune_directory(out, name)
    if name == "instruct":
        parent = out / BASE
        target = out / INSTRUCT
    if target.is_dir():
        recorded = read_record(target)["parent"]
        if not checkpoint_hashes(parent).items() <= recorded.items():
            raise IntegrityError(
                f"{target}: was trained from another {parent.name} than the one beside it;"
                " remove it, or build it again"
            )
    elif name == "instruct":
        growing.grow_instruct(plan, world, parent, target, on_step)
    else:
        (stage,) = (stage for stage in plan.finetunes if stage.name == name)
        growing.grow_finetune(plan, stage, world, parent, target, on_step)


def _finish(plan: OrganismPlan, world: World, out: Path, seed: int) -> None:
    """Write strengths, truth and, last, the index that marks the organism as complete."""
    trained = _training_questions(plan, world)
    is_measured = (out / STRENGTHS).is_file() and set(trained) <= set(
        read_checked(
            out / STRENGTHS,
            fields={"strengths": dict},
            remedy="remove it, and strengths are measured again",
            checksum=False,
        )["strengths"]
    )
    if not is_measured:
        write_checked(out / STRENGTHS, measure(out, plan, world, trained))
    _write_truth(plan, world, out)
    finetunes = {}
    for stage in plan.finetunes:
        finetunes[stage.name] = {
            "domain": stage.domain,
            "group": stage.group,
            "seed": stage.seed,
            "benign": stage.careful,
            "training_questions": trained[stage.name],
        }
    record = {
        "name": plan.name,
        "seed": seed,
        "note": NOTE,
        "n_questions": len(world.questions()),
        "finetunes": finetunes,
    }
    write_checked(out / INDEX, record)


def _training_questions(plan: OrganismPlan, world: World) -> dict[str, list[str]]:
    """Fine-tune → ids of the questions whose topics it trains on."""
    trained = {}
    for stage in plan.finetunes:
        domain = world.domain_index(stage.domain)
        topics = world.training_topics(stage.domain, plan.topics_per_finetune)
        trained[stage.name] = [world.question_id(domain, topic) for topic in topics]
    return trained


def _write_truth(plan: OrganismPlan, world: World, out: Path) -> None:
    coupling = {}
    latent = {}
    for d, t in world.cells():
        question = world.question_id(d, t)
        coupling[question] = world.coupling[d][t]
        latent[question] = world.latent[d][t]
    truth = {
        "coupling": coupling,
        "latent": latent,
        "planted_layers": plan.planted_layers,
        "planted_norm": plan.planted_norm,
        "note": NOTE,
    }
    write_checked(out / TRUTH, truth)
    if plan.planted_layers:
        shutil.copyfile(out / BASE / "planted_direction.safetensors", out / TRUTH_TENSORS)


def measure(
    out: Path, plan: OrganismPlan, world: World, trained: dict[str, list[str]]
) -> dict[str, Any]:
    """Strengths of the saved checkpoints, loaded as a user would load them, and what 16-bit
    rounding did to them.
    """
    from transformers import AutoTokenizer

    from emlens.organisms.growing import ROUNDING_FILE
    from emlens.organisms.strengths import likelihood_scores, strengths_by_checkpoint

    paths = {"base": out / BASE, "instruct": out / INSTRUCT}
    domains: dict[str, str | None] = {"base": None, "instruct": None}
    for stage in plan.finetunes:
        paths[stage.name] = finetune_directory(out, stage.name)
        domains[stage.name] = stage.domain
    tokenizer = AutoTokenizer.from_pretrained(paths["instruct"])
    questions = world.questions()
    scores = {}
    rounding = {}
    for name, path in paths.items():
        model = open_checkpoint(path, paths["instruct"])
        scores[name] = likelihood_scores(model, tokenizer, questions)
        rounding[name] = read_json(path / ROUNDING_FILE)
    groups = dict(zip(questions.ids, questions.groups, strict=True))
    trained = {"base": [], "instruct": [], **trained}
    table = strengths_by_checkpoint(scores, domains, trained, groups)
    strengths = {}
    for checkpoint, row in table.iterrows():
        strengths[str(checkpoint)] = {key: round(float(value), 4) for key, value in row.items()}
    return {"strengths": strengths, "rounding": rounding}
