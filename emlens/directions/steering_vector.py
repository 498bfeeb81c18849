"""A direction trained by gradient: one vector added to the stream at one site, fitted to answers.

Steering-vector fine-tuning: every weight is frozen. The vector starts at zero and is optimised with
Adam in units of the stream's own root-mean-square coordinate, so that one learning rate fits models
of any scale. It works through the model's interventions, on every backend: gradients are recorded
from the site on, and no parameter's own gradient or flag is touched. Rows without an answer are
refused. Cost: a forward and about two thirds of a backward pass per step; the graph of the blocks
above the site is kept for one batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.data.rendering import Rendered, rendered_hash
from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.intervention import Edit, PaddedRows, TokenScope
from emlens.foundation.notebooks import in_a_line
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models.batches import Batch, pad
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel
from emlens.runs.progress import progress_bar
from emlens.training.examples import shuffled_batches


@dataclass(frozen=True, eq=False, repr=False)
class TrainedVector:
    """A trained steering vector.

    Args:
        direction: points towards the answers it was trained on; its length is the trained one.
        log: step, loss (nats per answer token, over the rows of that step), norm.
        loss_before, loss_after: over all rows, without the vector and with it.
    """

    direction: Direction
    log: pd.DataFrame
    loss_before: float
    loss_after: float

    def __repr__(self) -> str:
        facts = {
            "site": self.direction.site,
            "d_model": self.direction.d_model,
            "norm": f"{self.direction.norm:.4g}",
            "steps": len(self.log),
            "loss_before": f"{self.loss_before:.4g}",
            "loss_after": f"{self.loss_after:.4g}",
        }
        return in_a_line("TrainedVector", facts)


@dataclass(eq=False)
class _Added(Edit):
    """The vector under training, as an intervention.

    Gradients are recorded from its site to the end of the pass.
    """

    vector: Tensor
    site: Site
    positions: TokenScope
    by_prompt: ClassVar[bool] = False

    @property
    def d_model(self) -> int:
        return len(self.vector)

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        if self.site not in sites:
            raise InputError(
                f"site {self.site} matches nothing in this model; it has {sites[0]} to {sites[-1]}"
            )
        return [self.site]

    def bind(self, site: Site, rows: PaddedRows) -> Edit:
        return self

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        # backends run their passes without gradients; here they are switched on mid-pass
        torch.set_grad_enabled(self.vector.requires_grad)
        step = self.vector if mask is None else mask[..., None] * self.vector
        return activation + step.to(activation.dtype)

    def describe(self) -> dict[str, Any]:
        return {"kind": "trained vector", "site": str(self.site), "positions": self.positions}


def train_steering_vector(
    model: HookedModel,
    chats: PromptSet,
    site: str | Site,
    *,
    steps: int = 100,
    batch_size: int = 16,
    learning_rate: float = 0.03,
    max_norm: float | None = None,
    positions: TokenScope = "all",
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> TrainedVector:
    """Fit v in h ← h + v at `site` so that the model gives the answers of the chats.

    The loss is the mean negative log-likelihood per answer token.

    Args:
        chats: prompts with their answers kept (`Answers.prompts()`, training chats).
        learning_rate: Adam's, in units of the root-mean-square coordinate of the stream at the
            site.
        max_norm: largest norm of the vector, in units of the mean norm of the stream there; a
            longer one is shortened after each step. None: no limit.
        positions: tokens the vector is added at: `"all"`, `"prompt"` or `"response"`.
        steps: of the optimiser.
        batch_size: chats of a step.

    Returns:
        `TrainedVector`; the same call gives the same bytes (float32, CPU, same thread count).

    Raises:
        InputError: a site that does not exist, a prompt without an answer, counts or rates that are
            not positive.
        StateError: the loss is not finite; the vector changes nothing (no answer token follows the
            site and scope).
    """
    _require_counts(steps=steps, batch_size=batch_size)
    _require_positive(learning_rate=learning_rate, max_norm=max_norm)
    place = Site.parse(site, model.n_layers)
    rows = model.render(chats)
    _require_answers(rows)
    stream_norm = _stream_norm(model, rows, place, batch_tokens)
    # the optimiser sees coordinates in units of the stream's root mean square
    unit = stream_norm / model.d_model**0.5
    raw = torch.zeros(model.d_model, dtype=torch.float32, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=learning_rate)
    log = []
    plan = shuffled_batches(len(rows), min(batch_size, len(rows)), steps, seed)
    with (
        # restores the caller's mode at the end
        torch.enable_grad(),
        progress_bar(f"steering vector at {place}", steps, progress) as advance,
    ):
        for step, index in enumerate(plan, start=1):
            batch = pad([rows[i] for i in index], index, model.pad_id, "right", model.device)
            total, count = _summed_loss(model, batch, _Added(raw * unit, place, positions))
            loss = total / count
            _require_finite(loss, step, learning_rate)
            raw.grad = _gradient(loss, raw)
            if step == 1 and not bool((raw.grad != 0).any()):
                raise StateError(
                    f"the answers do not depend on what is added at {place} to {positions!r}"
                    " tokens; pass another site or positions"
                )
            optimiser.step()
            if max_norm is not None:
                _pull_back(raw, unit, max_norm * stream_norm)
            norm = float(raw.detach().norm()) * unit
            log.append({"step": step, "loss": float(loss.detach()), "norm": norm})
            advance()
    vector = raw.detach() * unit
    before, after = (
        _mean_loss(model, rows, _Added(v, place, positions), batch_tokens)
        for v in (torch.zeros_like(vector), vector)
    )
    provenance = {
        "kind": "trained steering vector",
        "model": model.provenance,
        "rendered_sha256": rendered_hash(rows),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_norm": max_norm,
        "positions": positions,
        "seed": seed,
        "stream_norm": stream_norm,
        "loss_before": before,
        "loss_after": after,
    }
    ids = {"trained on": tuple(row.id for row in rows)}
    direction = Direction(vector.cpu(), place, None, None, ids, provenance)
    return TrainedVector(direction, pd.DataFrame(log), before, after)


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name}={count!r} must be an integer of 1 or more")


def _require_positive(**rates: float | None) -> None:
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise InputError(f"{name}={rate!r} must be a positive number")


def _require_answers(rows: Sequence[Rendered]) -> None:
    for row in rows:
        if row.prompt_end == len(row.ids):
            raise InputError(
                f"prompt {one_line(row.id, 60)!r} keeps no answer to train on;"
                " pass chats with answers"
            )


def _require_finite(loss: Tensor, step: int, learning_rate: float) -> None:
    if not bool(torch.isfinite(loss)):
        raise StateError(
            f"the loss is {float(loss.detach())} at step {step};"
            f" lower learning_rate={learning_rate:g}, or check the model's weights"
        )


def _gradient(loss: Tensor, raw: Tensor) -> Tensor:
    """With respect to the vector alone; zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return torch.zeros_like(raw)
    return torch.autograd.grad(loss, [raw])[0]


def _pull_back(raw: Tensor, unit: float, longest: float) -> None:
    """Shorten the vector to the longest norm that is allowed."""
    length = float(raw.detach().norm()) * unit
    if length > longest:
        raw.data *= longest / length


def _summed_loss(model: HookedModel, batch: Batch, added: _Added) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of what the model is to write (`Rendered.written`) in float32,
    and how many tokens that is.
    """
    with model.intervene([added]):
        logits = model.run(batch, with_logits=True)
    if logits is None:
        raise StateError(f"backend {model.backend!r} returned no logits")
    places = []
    for i, row in enumerate(batch.rows):
        for token in row.written:
            places.append((i, token))
    row_index, column = torch.tensor(places, device=logits.device).T
    # the logits at a token are those of the next one
    predictions = logits[row_index, column - 1].float()
    targets = batch.ids[row_index, column].to(logits.device)
    loss = torch.nn.functional.cross_entropy(predictions, targets, reduction="sum")
    return loss, len(places)


def _batches(model: HookedModel, rows: Sequence[Rendered], batch_tokens: int) -> Iterator[Batch]:
    return model.batches(rows, model.logit_tokens(batch_tokens))


@torch.no_grad()
def _mean_loss(
    model: HookedModel, rows: Sequence[Rendered], added: _Added, batch_tokens: int
) -> float:
    """Mean negative log-likelihood per answer token, over all rows."""
    total, n_tokens = 0.0, 0
    for batch in _batches(model, rows, batch_tokens):
        loss, count = _summed_loss(model, batch, added)
        total += float(loss)
        n_tokens += count
    return total / n_tokens


@torch.no_grad()
def _stream_norm(
    model: HookedModel, rows: Sequence[Rendered], site: Site, batch_tokens: int
) -> float:
    """Mean norm of the stream over the tokens of the first batch."""
    batch = next(_batches(model, rows, batch_tokens))
    norms: list[float] = []

    def read(stream: Tensor) -> None:
        tokens = stream[batch.mask.to(stream.device)]
        norms.append(float(tokens.double().norm(dim=-1).mean()))

    model.run(batch, {site: read})
    if not norms[0] > 0:
        raise StateError(
            f"the stream at {site} is zero, so a vector there has no scale;"
            " check the model's weights"
        )
    return norms[0]
