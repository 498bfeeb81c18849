"""Random programs whose edits overlap in time: what stays behind, and what is seen inside?

Edits are opened and left in any order, held by plain generators that are advanced, closed, thrown
into or forgotten, by coroutines under `asyncio.gather` with failures and cancellations, and by
threads. An edit is an intervention or an adapter applied in memory. Every pass inside a program is
compared bit by bit with a clean pass under the edits that its own context has open.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import Context
from typing import Any

import torch
from torch import Tensor

from benchmarks.intervention_programs import (
    Planted,
    copied_weights,
    hooks_of,
    pool_of,
    record_every_backend,
    weights_differ,
)
from emlens.data import PromptSet
from emlens.foundation.seeds import torch_rng
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.models.checkpoint import CheckpointModel

PROGRAMS, PROGRAMS_ELSEWHERE = 2000, 200
STEPS = 6
COUNTS = (
    "programs",
    "ended_by_a_failure",
    "passes",
    "passes_under_other_edits",
    "hooks_left",
    "edits_left",
    "weights_changed",
    "logits_changed",
)
Open = Callable[[], AbstractContextManager[Any]]


def edits_of(model: CheckpointModel, asked: PromptSet) -> list[Open]:
    """Ways to open an edit: every kind of intervention, and two adapters."""

    def intervening(intervention: Any) -> Open:
        return lambda: model.intervene([intervention])

    def applying(adapter: LoraAdapter) -> Open:
        return lambda: applied_adapter(model, adapter)

    edits = [intervening(intervention) for intervention in pool_of(model, asked)]
    return edits + [applying(_adapter(model, seed)) for seed in range(2)]


def _adapter(model: CheckpointModel, seed: int) -> LoraAdapter:
    """A random update of what the first block's MLP writes."""
    path = "model.layers.0.mlp.down_proj"
    d_out, d_in = model.module.get_submodule(path).weight.shape  # type: ignore[union-attr]
    generator = torch_rng(seed, "interleaved adapter")
    a = torch.randn(2, int(d_in), generator=generator)
    b = torch.randn(int(d_out), 2, generator=generator)
    return LoraAdapter({path: LoraFactors(a, b, 0.1)})


class Bench:
    """One model, its edits, and the clean logits under every stack of edits that was asked for."""

    def __init__(self, model: CheckpointModel, asked: PromptSet):
        self.model, self.asked = model, asked
        self.edits = edits_of(model, asked)
        self.passes = 0
        self.wrong = 0
        self._clean: dict[tuple[int, ...], Tensor] = {}
        self._lock = threading.Lock()

    def clean(self, open_edits: tuple[int, ...]) -> Tensor:
        """Logits under these edits, opened one inside the other in an empty context."""

        def nested() -> Tensor:
            with ExitStack() as stack:
                for number in open_edits:
                    stack.enter_context(self.edits[number]())
                return self.model.logits(self.asked)

        if open_edits not in self._clean:
            self._clean[open_edits] = Context().run(nested)
        return self._clean[open_edits]

    def check(self, open_edits: Sequence[int]) -> None:
        """One pass in the context of the caller, which has opened these edits in this order."""
        logits = self.model.logits(self.asked)
        with self._lock:
            self.passes += 1
            self.wrong += not torch.equal(logits, self.clean(tuple(open_edits)))


def in_any_order(bench: Bench, pick: random.Random) -> None:
    """Managers opened and left in any order."""
    managers: dict[int, AbstractContextManager[Any]] = {}
    try:
        for _ in range(STEPS):
            closed = [i for i in range(len(bench.edits)) if i not in managers]
            if managers and pick.random() < 0.4:
                managers.pop(pick.choice(list(managers))).__exit__(None, None, None)
            else:
                number = pick.choice(closed)
                managers[number] = bench.edits[number]()
                managers[number].__enter__()
            bench.check(list(managers))
            _fail(pick, 0.05)
    finally:
        for number in pick.sample(list(managers), len(managers)):
            managers.pop(number).__exit__(None, None, None)
            bench.check(list(managers))


def by_generators(bench: Bench, pick: random.Random) -> None:
    """Plain generators suspended inside blocks; they share the context of their caller."""
    open_edits: list[int] = []

    def holding(number: int) -> Iterator[None]:
        with bench.edits[number]():
            open_edits.append(number)
            try:
                yield
                bench.check(open_edits)
                yield
            finally:
                open_edits.remove(number)

    numbers = pick.sample(range(len(bench.edits)), 3)
    generators = [holding(number) for number in numbers]
    for _ in range(STEPS):
        if not generators:
            break
        generator = pick.choice(generators)
        how = pick.choice(("next", "next", "close", "throw", "elsewhere", "forget"))
        if how == "next":
            next(generator, None)
        elif how == "close":
            generator.close()
        elif how == "throw":
            with suppress(Planted):
                generator.throw(Planted())  # type: ignore[attr-defined]
        elif how == "elsewhere":
            thread = threading.Thread(target=generator.close)
            thread.start()
            thread.join()
        else:
            generators.remove(generator)
        del generator
        bench.check(open_edits)
    _fail(pick, 0.3)


def by_tasks(bench: Bench, pick: random.Random) -> None:
    """Coroutines that take turns; a child keeps the edits it was created under."""

    async def holding(seed: int, inherited: tuple[int, ...], depth: int) -> None:
        own = random.Random(seed)
        open_edits = list(inherited)
        children = []
        closed = [i for i in range(len(bench.edits)) if i not in inherited]
        with ExitStack() as stack:
            for number in own.sample(closed, own.randrange(1, 3)):
                stack.enter_context(bench.edits[number]())
                open_edits.append(number)
                await asyncio.sleep(0)
                bench.check(open_edits)
                _fail(own, 0.2)
            if depth < 1 and own.random() < 0.5:
                child = holding(own.randrange(999), tuple(open_edits), depth + 1)
                children.append(asyncio.create_task(child))
                if own.random() < 0.3:
                    await asyncio.sleep(0)
                    children[0].cancel()
        bench.check(inherited)
        await asyncio.gather(*children, return_exceptions=True)
        bench.check(inherited)

    async def together() -> None:
        seeds = [pick.randrange(10**6) for _ in range(3)]
        found = await asyncio.gather(
            *(holding(seed, (), 0) for seed in seeds), return_exceptions=True
        )
        bench.check(())
        for value in found:
            if isinstance(value, BaseException):
                raise value

    asyncio.run(together())


def by_threads(bench: Bench, pick: random.Random) -> None:
    """Threads with edits of their own, while the main thread has one open too."""
    failures: list[Planted] = []

    def holding(seed: int) -> None:
        own = random.Random(seed)
        try:
            in_any_order(bench, own)
        except Planted as failure:
            failures.append(failure)

    number = pick.randrange(len(bench.edits))
    with bench.edits[number]():
        threads = [
            threading.Thread(target=holding, args=(pick.randrange(10**6),)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        bench.check([number])
        for thread in threads:
            thread.join()
        bench.check([number])
    if failures:
        raise failures[0]


KINDS = (in_any_order, by_generators, by_tasks, by_threads)


def _fail(pick: random.Random, share: float) -> None:
    if pick.random() < share:
        raise Planted


@contextmanager
def _ended(found: dict[str, int]) -> Iterator[None]:
    try:
        yield
    except Planted:
        found["ended_by_a_failure"] += 1


def measure(
    model: CheckpointModel, asked: PromptSet, programs: int, seed: int = 0
) -> dict[str, int]:
    """Run programs, equally many of each kind, and count what each left behind."""
    pick = random.Random(seed)
    bench = Bench(model, asked)
    weights = copied_weights(model)
    logits, hooks = model.logits(asked), hooks_of(model)
    found = dict.fromkeys(COUNTS, 0)
    for number in range(programs):
        with _ended(found):
            KINDS[number % len(KINDS)](bench, pick)
        found["programs"] += 1
        found["hooks_left"] += hooks_of(model) - hooks
        found["edits_left"] += len(model.edit_records())
        found["weights_changed"] += weights_differ(model, weights)
        found["logits_changed"] += not torch.equal(model.logits(asked), logits)
    found["passes"], found["passes_under_other_edits"] = bench.passes, bench.wrong
    return found


def measure_backend(model: CheckpointModel, asked: PromptSet) -> dict[str, int]:
    programs = PROGRAMS if model.backend == "transformers" else PROGRAMS_ELSEWHERE
    return measure(model, asked, programs)


def main() -> None:
    record_every_backend("interleaved_programs", measure_backend)
