"""Sampling over an executor: the same file of answers whether one process, ranks or Ray actors drew
it.

A unit is a group of answers that are drawn side by side (`emlens.judging.drawing_groups`). Groups
are part of the plan, and so is the thread count that each worker sets: who draws a group changes
nothing, and the file is that of one call of `sample_answers` with as many threads. A group that a
worker left unfinished is drawn anew. When all are there, they are put together in order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

import torch

from emlens.data.answers import Answer, Answers, read_answers
from emlens.data.questions import QuestionSet
from emlens.data.templates import Thinking
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.provenance import hash_json
from emlens.judging.answer_file import answer_file
from emlens.judging.drawing_groups import cut_groups
from emlens.judging.sampling import blanks_of, draw_group, thinking_model
from emlens.models.hooked import GENERATION_TOKENS, HookedModel
from emlens.runs import Executor, Unit, Worker
from emlens.runs.units import UnitResult


class DrawingSettings(TypedDict, total=False):
    """How answers are drawn, as arguments of `sample_answers`."""

    samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    thinking: Thinking
    batch_tokens: int


_DEFAULTS: Final = DrawingSettings(
    samples=50,
    temperature=1.0,
    max_new_tokens=600,
    seed=0,
    thinking=None,
    batch_tokens=GENERATION_TOKENS,
)


def sample_over(
    executor: Executor,
    load: Callable[[], HookedModel],
    questions: QuestionSet,
    out: str | Path,
    *,
    threads: int | None = None,
    progress: bool = True,
    **settings: Unpack[DrawingSettings],
) -> Answers:
    """`sample_answers` to a file, its questions drawn by the workers of an executor.

    Args:
        executor: `LocalExecutor`, `RankExecutor` or `RayExecutor` of `emlens.runs`.
        load: loads the model, such as `functools.partial(emlens.load_model, path)`; called once in
            every worker's process.
        out: the JSONL file to write. What is being drawn lies beside it, in a folder with the
            ending `.units` that all workers see; the same call goes on there.
        threads: computing threads of every worker; default: as many as this process has. Part of
            the plan.
        settings: `samples`, `temperature`, `max_new_tokens`, `seed`, `thinking` and `batch_tokens`
            of `sample_answers`, with its defaults. A smaller `batch_tokens` makes more and smaller
            groups to share out.

    Raises:
        InputError: as `sample_answers`; `load` is not a function, or does not give a model; `out`
            was written by something else.
        StateError: blocks failed repeatedly; the finished ones are kept.
        IntegrityError: the folder holds another plan, or a worker's model is not as planned.
    """
    out = Path(out)
    units = out.with_name(out.name + ".units")
    _require_new(out, units, load)
    for name in settings:
        if name not in _DEFAULTS:
            raise UnknownNameError(
                f"{name!r} is no setting of sample_over; settings: {', '.join(_DEFAULTS)}",
                name=name,
                known=list(_DEFAULTS),
            )
    drawn_with: DrawingSettings = {**_DEFAULTS, **settings}
    n_threads = threads or torch.get_num_threads()
    start = _WorkerStart(load, questions, str(out.resolve()), drawn_with, n_threads)
    title = f"sample {drawn_with['samples']} answers to {len(questions)} questions"
    executor.run(start, units, title=title, progress=progress)
    return Answers(read_answers(out))


def _require_new(out: Path, units: Path, load: Any) -> None:
    if not callable(load):
        raise InputError(
            f"load is a {type(load).__name__}; pass a function that loads the model, such as"
            " functools.partial(emlens.load_model, path): every worker calls it once"
        )
    if out.exists() and not units.exists():
        raise InputError(
            f"{out}: was not drawn by workers of an executor (there is no {units.name} beside it);"
            " pass another file"
        )


@dataclass(frozen=True)
class _WorkerStart:
    """Everything that a worker needs to start in another process."""

    load: Callable[[], HookedModel]
    questions: QuestionSet
    out: str
    drawn_with: DrawingSettings
    threads: int

    def __call__(self) -> Worker:
        torch.set_num_threads(self.threads)
        model = self.load()
        if not isinstance(model, HookedModel):
            raise InputError(
                f"load gave a {type(model).__name__} where a model was expected;"
                " return what emlens.load_model returns"
            )
        return _SamplingWorker(model, self)


class _SamplingWorker(Worker):
    """A model in memory, and groups of answers by unit."""

    def __init__(self, model: HookedModel, start: _WorkerStart):
        self._model = model
        self._start = start
        self._out = Path(start.out)
        self._parts = self._out.with_name(self._out.name + ".units") / "parts"
        drawn_with = start.drawn_with
        length, budget = drawn_with["max_new_tokens"], drawn_with["batch_tokens"]
        with thinking_model(model, drawn_with["thinking"]) as thinking:
            self._blanks = blanks_of(
                thinking,
                start.questions,
                drawn_with["samples"],
                drawn_with["temperature"],
                length,
                drawn_with["seed"],
            )
            groups = cut_groups(thinking, list(self._blanks.values()), length, budget)
        self._groups = {f"group-{number:06d}": group for number, group in enumerate(groups)}

    def plan(self) -> Sequence[Unit]:
        shared = {
            "model": self._model.name,
            "template": hash_json(self._model.chat_template),
            "threads": self._start.threads,
            **self._start.drawn_with,
        }
        units = []
        for id, group in self._groups.items():
            blanks = hash_json([self._blanks[key].to_record() for key in group])
            units.append(Unit(id, {**shared, "answers": blanks}, cost=len(group)))
        return units

    def run(self, unit: Unit) -> UnitResult:
        part = self._part(unit.id)
        part.parent.mkdir(parents=True, exist_ok=True)
        # other rows side by side round otherwise, so an unfinished group begins anew
        part.unlink(missing_ok=True)
        blanks = {key: self._blanks[key] for key in self._groups[unit.id]}
        drawn_with = self._start.drawn_with
        with (
            thinking_model(self._model, drawn_with["thinking"]) as model,
            answer_file(part, blanks) as file,
        ):
            for drawn in draw_group(
                model,
                list(blanks.values()),
                drawn_with["temperature"],
                drawn_with["max_new_tokens"],
                drawn_with["seed"],
                drawn_with["thinking"],
                drawn_with["batch_tokens"],
            ):
                file.add(drawn, sync=False)
            answers = file.finish()
        return {"answers": len(answers)}, [part]

    def _part(self, id: str) -> Path:
        return self._parts / f"{id}.jsonl"

    def finish(self, answers: Mapping[str, Any]) -> UnitResult:
        in_order: list[Answer] = []
        for id in self._groups:
            in_order.extend(read_answers(self._part(id)))
        Answers(in_order).to_jsonl(self._out)
        return {"answers": len(in_order)}, [self._out]
