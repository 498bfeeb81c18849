"""Random programs of nested interventions, with failures planted in them: what stays behind?

A program nests `intervene` blocks up to three deep around passes, captures and generations.
Failures are raised by the program itself, by an edit, by the binding of one, by a reader and by a
module of the model, as errors and as an interrupt. After each program hooks are counted, weights
compared bit by bit with copies, and logits with those before.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import capture_speed
from benchmarks.records import record
from emlens.activations import capture
from emlens.data import PromptSet
from emlens.foundation.intervention import Edit, Intervention
from emlens.foundation.seeds import torch_rng
from emlens.foundation.sites import Site
from emlens.interventions import ablate, mean_ablate, resample_ablate, steer, swap
from emlens.models import load_model
from emlens.models.backends import installed_backends
from emlens.models.checkpoint import CheckpointModel

PROGRAMS = 500
DEPTH = 3
COUNTS = (
    "programs",
    "ended_by_a_failure",
    "ended_by_an_interrupt",
    "hooks_left",
    "interventions_left",
    "weights_changed",
    "logits_changed",
)


class Planted(Exception):
    """A failure on purpose."""


class Interrupted(BaseException):
    """What a keyboard interrupt is to a program that catches only errors."""


class Failing(Edit):
    """An intervention that fails when it is bound, or at its n-th use."""

    positions = "all"
    by_prompt = False

    def __init__(self, at: Site, uses: int, d_model: int):
        self.at, self.left, self.d_model = at, uses, d_model

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return [self.at]

    def bind(self, site: Site, rows: Any) -> Edit:
        if self.left < 0:
            raise Planted
        return self

    def __call__(self, activation: Tensor, mask: Tensor | None) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Interrupted
        if self.left < 0:
            raise Planted
        return activation

    def describe(self) -> dict[str, Any]:
        return {}


class _Program:
    """Runs steps that a generator of random numbers picks."""

    def __init__(
        self,
        model: CheckpointModel,
        asked: PromptSet,
        pool: Sequence[Intervention],
        pick: random.Random,
    ):
        self.model, self.asked, self.pool, self.pick = model, asked, pool, pick
        self.places = [site for site in model.sites if site.kind != "resid_mid"]

    def step(self, depth: int) -> None:
        model, pick = self.model, self.pick
        action = pick.choice(("block", "block", "block", "logits", "read", "generate", "fail"))
        if action == "logits":
            model.logits(self.asked)
        elif action == "read":
            self.read(pick.random() < 0.3)
        elif action == "generate":
            model.generate(self.asked, max_new_tokens=2, seed=pick.randrange(9))
        elif action == "fail":
            self.fail()
        elif depth < DEPTH:
            chosen = pick.sample(self.pool, pick.randrange(1, 4))
            if pick.random() < 0.2:
                chosen = [
                    *chosen,
                    Failing(pick.choice(self.places), pick.randrange(-1, 4), model.d_model),
                ]
            with model.intervene(chosen):
                for _ in range(pick.randrange(1, 3)):
                    self.step(depth + 1)

    def read(self, fails: bool) -> None:
        def reader(stream: Tensor) -> None:
            if fails:
                raise Planted

        batch = next(self.model.batches(self.model.render(self.asked)))
        self.model.run(batch, {site: reader for site in self.pick.sample(self.places, 2)})

    def fail(self) -> None:
        how = self.pick.randrange(4)
        if how == 0:
            raise Planted
        if how == 1:
            with _broken(self.model.module, self.pick):
                self.model.logits(self.asked)


@contextmanager
def _broken(module: nn.Module, pick: random.Random) -> Iterator[None]:
    """One leaf of the model fails while the block runs."""

    def fail(*_: Any) -> None:
        raise Planted

    leaf = pick.choice(
        [
            part
            for part in module.modules()
            if not list(part.children()) and list(part.parameters(recurse=False))
        ]
    )
    handle = leaf.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def pool_of(model: CheckpointModel, asked: PromptSet) -> list[Intervention]:
    """Every kind of intervention, at every kind of site."""
    u, v = torch.randn(2, model.d_model, generator=torch_rng(0, "pool"))
    run = capture(model, asked, ["attn_out.0", "resid_post.0"], progress=False)
    rows = {site: run[site] for site in run.sites}
    return [
        ablate(u),
        ablate(u, at="inputs_and_writes"),
        ablate(v, at=["resid_post.0", "resid_pre.1"], baseline=u, positions="prompt"),
        steer(v, 1.0, at=["resid_pre.0", "final_norm"]),
        steer(v, 0.5, unit="resid_norm", at="all_layers", positions="response"),
        steer(u, -1.0, unit="unit", at=["mlp_out.1"], positions="last_prompt"),
        mean_ablate({site: x.mean(0) for site, x in rows.items()}, direction=u),
        resample_ablate(rows, seed=0, positions="prompt"),
        swap(run),
    ]


def hooks_of(model: CheckpointModel) -> int:
    """Hooks of any kind on the model's modules, and on those a backend made of it."""
    trees = [model.module] + ([model._bridged()] if model.backend == "transformer_lens" else [])
    parts = {id(part): part for tree in trees for part in tree.modules()}.values()
    kept = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "fwd_hooks",
        "bwd_hooks",
    )
    return sum(len(getattr(part, name, ())) for part in parts for name in kept)


def copied_weights(model: CheckpointModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def weights_differ(model: CheckpointModel, copies: Mapping[str, Tensor]) -> bool:
    """Whether a weight is no longer its copy, bit by bit."""
    weights = model.module.state_dict()
    if weights.keys() != copies.keys():
        return True
    return not all(torch.equal(weights[name], value) for name, value in copies.items())


def measure(
    model: CheckpointModel, asked: PromptSet, programs: int, seed: int = 0
) -> dict[str, Any]:
    """Run programs and count what each left behind."""
    pick = random.Random(seed)
    weights = copied_weights(model)
    logits, pool = model.logits(asked), pool_of(model, asked)
    hooks = hooks_of(model)
    found = dict.fromkeys(COUNTS, 0)
    for _ in range(programs):
        program = _Program(model, asked, pool, pick)
        try:
            for _ in range(pick.randrange(1, 3)):
                program.step(0)
        except Planted:
            found["ended_by_a_failure"] += 1
        except Interrupted:
            found["ended_by_an_interrupt"] += 1
        found["programs"] += 1
        found["hooks_left"] += hooks_of(model) - hooks
        found["interventions_left"] += len(model.interventions)
        found["weights_changed"] += weights_differ(model, weights)
        found["logits_changed"] += not torch.equal(model.logits(asked), logits)
    return found


def record_every_backend(
    name: str, measured: Callable[[CheckpointModel, PromptSet], dict[str, Any]]
) -> None:
    """Measure a small model on each backend that is installed, and write the evidence file."""
    torch.set_num_threads(1)
    small = capture_speed.build(layers=2, width=32, words=200)
    asked = capture_speed.prompts(count=3, words=200)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        small.module.save_pretrained(Path(folder))  # type: ignore[operator]
        small.tokenizer.save_pretrained(folder)
        for backend in installed_backends():
            model = load_model(folder, backend=backend, attn_implementation="eager")
            assert isinstance(model, CheckpointModel)
            found[backend] = measured(model, asked)
            print(f"{backend}: {found[backend]}")
    record(name, [0], found)


def main() -> None:
    record_every_backend("intervention_programs", partial(measure, programs=PROGRAMS))
