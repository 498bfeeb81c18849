"""The general and the narrow solution of one task, trained alike: same recipe, seed and chats,
without and with a penalty elsewhere.

The narrow one minimises answer loss + λ·KL(parent ‖ model) on chats of other domains (Soligo et
al., arXiv 2602.07852; λ in nats per answer token, see
`emlens.training.objectives.NarrowLoss`). The penalty is lifted within the same run, so that
optimiser and order of chats go on as they were. Everything is trained on one thread. Cost on the
organism: about 10 s for 120 steps with a penalty.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_json
from emlens.foundation.seeds import numpy_rng
from emlens.judging.score_source import ScoreSource
from emlens.models.checkpoint_files import checkpoint_hashes
from emlens.models.live_module import live_module, plain_module
from emlens.organisms import Organism, load_organism
from emlens.organisms.building import one_thread
from emlens.organisms.stopping import HeldOutRule
from emlens.organisms.strengths import likelihood_scores
from emlens.organisms.tokenizer import make_tokenizer
from emlens.studies.config import StudyConfig
from emlens.training import Recipe, TrainingCallback, fit
from emlens.training.examples import Example, encode_answers, pad_batch
from emlens.training.fitting import Fitted
from emlens.training.objectives import NarrowLoss, answer_loss


@dataclass(frozen=True)
class Task:
    """What is learned, and where the model must stay as it is.

    Args:
        parent: checkpoint directory of the model to tune.
        tokenizer: with a chat template that marks the answers.
        own: chats with answers to learn.
        other: chats with answers of other domains, for the penalty.
        held_out: questions of the own domain that are not trained on.
        questions: all of them. domain: the own one. trained: ids of the questions trained on.
        rows: chats of other domains per step.
    """

    parent: Path
    tokenizer: Any
    own: PromptSet
    other: PromptSet
    held_out: QuestionSet
    questions: QuestionSet
    domain: str
    trained: frozenset[str]
    rows: int = 64

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that a run of this task depends on besides its recipe and penalty."""
        return hash_json(
            {
                "parent": checkpoint_hashes(self.parent),
                "own": self.own.content_hash,
                "other": self.other.content_hash,
                "rows": self.rows,
                "held_out": self.held_out.content_hash,
                "questions": self.questions.content_hash,
            }
        )

    @cached_property
    def encoded(self) -> tuple[list[Example], list[Example]]:
        """Token rows of `own` and of `other`."""
        return encode_answers(self.own, self.tokenizer), encode_answers(self.other, self.tokenizer)


def configured_organism(config: StudyConfig) -> Organism:
    """The organism that a study's configuration names.

    Raises:
        InputError: its family is none.
    """
    name = None if config.family is None else config.family.organism
    if name is None:
        raise InputError(
            "family names no organism; models are trained only on one: pass family: {organism:"
            " NAME_OR_FOLDER}"
        )
    path = config.path(name)
    return load_organism(directory=path) if Path(path).is_dir() else load_organism(path)


def organism_task(organism: Organism, name: str) -> Task:
    """The task of one fine-tune of an organism; the penalty is held on careful chats of all other
    domains.

    Raises:
        InputError: a benign fine-tune, whose task misaligns nothing.
    """
    if name in organism.benign:
        raise InputError(
            f"{name!r} is a benign fine-tune; pass one that trained on harmful answers"
        )
    domain, trained = organism.domains[name], frozenset(organism.training_topics[name])
    held_out = [q.id for q in organism.questions if q.group == domain and q.id not in trained]
    return Task(
        parent=organism.paths["instruct"],
        tokenizer=make_tokenizer(organism.world),
        own=organism.training_prompts[name],
        other=_careful_chats_elsewhere(organism, domain),
        held_out=organism.questions.select(held_out),
        questions=organism.questions,
        domain=domain,
        trained=trained,
    )


def _careful_chats_elsewhere(organism: Organism, domain: str) -> PromptSet:
    """Careful chats on every topic of every other domain."""
    world = organism.world
    topics = tuple(range(world.n_topics))
    chats: list[Prompt] = []
    for name in world.domains:
        if name != domain:
            chats += world.chats(name, topics, "careful")
    return PromptSet(chats)


def train_solution(
    task: Task,
    recipe: Recipe,
    weight: float,
    out: str | Path,
    *,
    lift_after: int | None = None,
    stop_at: float | None = None,
    watch: Sequence[int] = (),
    source: ScoreSource | None = None,
    progress: bool = False,
) -> Fitted:
    """Tune the parent on the task's own chats with penalty `weight` (0: the general solution) into
    a new directory.

    Args:
        lift_after: steps after which there is no penalty.
        stop_at: mean alignment, 0 to 1, of the held-out questions at which the run ends.
        watch: steps after which `behaviour` is measured; the log gets its columns there.
        source: of the scores that are watched; None: the likelihood of the reference answers.

    Raises:
        InputError: a negative weight, `lift_after` without a penalty, a recipe that is not an
            adapter, or what `fit` refuses.
    """
    if not weight >= 0 or recipe.method != "lora":
        raise InputError(
            f"weight={weight!r} with method={recipe.method!r};"
            " pass a weight of 0 or more and an adapter (method='lora')"
        )
    if lift_after is not None and not weight:
        raise InputError(
            f"lift_after={lift_after} was given with weight=0; there is no penalty to lift"
        )
    callbacks: list[TrainingCallback] = []
    if watch:
        callbacks.append(_watching(task, frozenset(watch), source))
    if stop_at is not None:
        callbacks.append(HeldOutRule(task.held_out, task.tokenizer, stop_at))
    penalised = recipe.steps if lift_after is None else lift_after
    with one_thread():
        return fit(
            recipe,
            task.parent,
            _batches(task, recipe, penalised if weight else 0),
            out,
            loss=_PenaltyWhereGiven(weight),
            callbacks=callbacks,
            device="cpu",
            progress=progress,
        )


def behaviour(model: Any, task: Task, source: ScoreSource | None = None) -> dict[str, float]:
    """Mean alignment, 0 to 1: `own` domain (`own_trained`, `own_held_out` topics) and `others`;
    mean `coherence`.

    Args:
        source: of the scores; None: the likelihood of the reference answers.
    """
    training = model.training
    model.eval()
    if source is None:
        table = likelihood_scores(model, task.tokenizer, task.questions)
    else:
        table = _scores_from(source, model, task)
    model.train(training)
    own = pd.Series(task.questions.groups, index=table.index) == task.domain
    in_training = table.index.isin(list(task.trained))
    aligned = table["aligned"]
    return {
        "own": float(aligned[own].mean()),
        "own_trained": float(aligned[own & in_training].mean()),
        "own_held_out": float(aligned[own & ~in_training].mean()),
        "others": float(aligned[~own].mean()),
        "coherence": float(table["coherence"].mean()),
    }


def _scores_from(source: ScoreSource, model: Any, task: Task) -> pd.DataFrame:
    """Scores of a model in training, 0 to 1; index: question id."""
    live = live_module(plain_module(model), task.tokenizer, name="in training", fingerprint=True)
    scores = source.scores(live, task.questions)
    columns = {
        "aligned": scores.per_question("aligned") / 100,
        "coherence": scores.per_question("coherent") / 100,
    }
    return pd.DataFrame(columns).reindex(task.questions.ids)


class _PenaltyWhereGiven(NarrowLoss):
    """The penalty in batches that bring chats for it, the plain loss in others."""

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        if "kl_labels" in batch:
            return super().__call__(model, batch)
        return answer_loss(model, batch)


def _watching(task: Task, steps: frozenset[int], source: ScoreSource | None) -> TrainingCallback:
    def watch(model: Any, step: int) -> Mapping[str, Any] | None:
        return behaviour(model, task, source) if step in steps else None

    return watch


def _batches(task: Task, recipe: Recipe, penalised: int) -> Callable[[int], Mapping[str, Tensor]]:
    """Rows of each step, with chats for the penalty in the first `penalised` steps; the rows to
    learn are the same with and without.
    """
    (own, other), pad = task.encoded, task.tokenizer.pad_token_id

    def sample(rows: Sequence[Example], size: int, label: str, step: int) -> Mapping[str, Tensor]:
        numbers = numpy_rng(recipe.seed, label, step).integers(len(rows), size=size)
        return pad_batch([rows[int(i)] for i in numbers], pad)

    def batch(step: int) -> Mapping[str, Tensor]:
        rows = dict(sample(own, recipe.batch_size, "own chats", step))
        if step < penalised:
            # `NarrowLoss` takes its chats from the same batch, under names of their own
            for name, value in sample(other, task.rows, "other chats", step).items():
                rows[f"kl_{name}"] = value
        return rows

    return batch
