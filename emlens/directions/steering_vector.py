"""A direction trained by gradient: one vector added to the stream at one site, fitted to answers,
every weight frozen.

Steering-vector fine-tuning. The vector starts at zero and is optimised with Adam in units of the
stream's own root-mean-square coordinate, so that one learning rate fits models of any scale. It
works through the model's interventions, on every backend: gradients are recorded from the site on,
and no parameter's own gradient or flag is touched. It refuses rows without an answer. Cost: a
forward and about two thirds of a backward pass a step; the graph of the blocks above the site is
held for one batch.
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
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models.batches import Batch, pad
from emlens.models.hooked import DEFAULT_BATCH_TOKENS, HookedModel
from emlens.runs.progress import progress_bar
from emlens.training.examples import shuffled_batches


@dataclass(frozen=True, eq=False)
class TrainedVector:
    """A trained steering vector.

    Args:
        direction: points towards the answers it was trained on; its length is the one trained.
        log: step, loss (nats an answer token, of that step's rows), norm.
        loss_before, loss_after: over all rows, without the vector and with it.
    """

    direction: Direction
    log: pd.DataFrame
    loss_before: float
    loss_after: float


@dataclass(eq=False)
class _Added(Edit):
    """The vector under training, as an intervention; gradients are on from here to the end of the
    pass.
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
        torch.set_grad_enabled(self.vector.requires_grad)
        return activation + (self.vector if mask is None else mask[..., None] * self.vector).to(
            activation.dtype
        )

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
    """Fit v in h ← h + v at `site` so that the model gives the chats' answers; mean negative
    log-likelihood an answer token.

    Args:
        chats: prompts with their answers kept (`Answers.prompts()`, training chats).
        learning_rate: Adam's, in units of the root-mean-square coordinate of the stream at the
            site.
        max_norm: longest vector, in units of the mean norm of the stream there; it is pulled back
            after each step. None: free.
        positions: tokens the vector is added at: `"all"`, `"prompt"` or `"response"`.

    Returns:
        `TrainedVector`; same call, same bytes (float32, CPU, one thread count).

    Raises:
        InputError: a site that does not exist, a prompt without an answer, counts or rates that are
            not positive.
        StateError: the loss is not finite; the vector changes nothing (no answer token follows the
            site and scope).
    """
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name}={number!r} must be an integer of 1 or more")
    for name, rate in (("learning_rate", learning_rate), ("max_norm", max_norm)):
        if rate is not None and not 0 < rate < float("inf"):
            raise InputError(f"{name}={rate!r} must be a positive number")
    where = Site.parse(site, model.n_layers)
    rows = model.render(chats)
    empty = [row.id for row in rows if row.prompt_end == len(row.ids)]
    if empty:
        raise InputError(
            f"prompt {one_line(empty[0], 60)!r} keeps no answer to train on;"
            " pass chats with answers"
        )
    scale = _stream_norm(model, rows, where, batch_tokens)
    unit = scale / model.d_model**0.5
    raw = torch.zeros(model.d_model, dtype=torch.float32, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=learning_rate)
    log = []
    plan = shuffled_batches(len(rows), min(batch_size, len(rows)), steps, seed)
    # restores the caller's mode
    with (
        torch.enable_grad(),
        progress_bar(f"steering vector at {where}", steps, progress) as advance,
    ):
        for step, chosen in enumerate(plan, start=1):
            batch = pad([rows[i] for i in chosen], chosen, model.pad_id, "right", model.device)
            loss, count = _loss(model, batch, _Added(raw * unit, where, positions))
            loss = loss / count
            if not bool(torch.isfinite(loss)):
                raise StateError(
                    f"the loss is {float(loss.detach())} at step {step};"
                    f" lower learning_rate={learning_rate:g}, or check the model's weights"
                )
            gradient = (
                torch.autograd.grad(loss, [raw])[0] if loss.requires_grad else torch.zeros_like(raw)
            )
            if step == 1 and not bool((gradient != 0).any()):
                raise StateError(
                    f"the answers do not depend on what is added at {where} to {positions!r}"
                    " tokens; pass another site or positions"
                )
            raw.grad = gradient
            optimiser.step()
            length = float(raw.detach().norm()) * unit
            if max_norm is not None and length > max_norm * scale:
                raw.data *= max_norm * scale / length
            log.append(
                {
                    "step": step,
                    "loss": float(loss.detach()),
                    "norm": float(raw.detach().norm()) * unit,
                }
            )
            advance()
    vector = raw.detach() * unit
    before, after = (
        _whole_loss(model, rows, _Added(v, where, positions), batch_tokens)
        for v in (torch.zeros_like(vector), vector)
    )
    facts = {
        "kind": "trained steering vector",
        "model": model.provenance,
        "rendered_sha256": rendered_hash(rows),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_norm": max_norm,
        "positions": positions,
        "seed": seed,
        "stream_norm": scale,
        "loss_before": before,
        "loss_after": after,
    }
    direction = Direction(
        vector.cpu(), where, None, None, {"trained on": tuple(row.id for row in rows)}, facts
    )
    return TrainedVector(direction, pd.DataFrame(log), before, after)


def _loss(model: HookedModel, batch: Batch, added: _Added) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of the answers' tokens in float32, and how many there are."""
    with model.intervene([added]):
        logits = model.run(batch, with_logits=True)
    if logits is None:
        raise StateError(f"backend {model.backend!r} returned no logits")
    at = [(i, t) for i, row in enumerate(batch.rows) for t in range(row.prompt_end, len(row.ids))]
    which, column = torch.tensor(at, device=logits.device).T
    chosen = logits[which, column - 1].float()
    return torch.nn.functional.cross_entropy(
        chosen, batch.ids[which, column].to(logits.device), reduction="sum"
    ), len(at)


def _batches(model: HookedModel, rows: Sequence[Rendered], batch_tokens: int) -> Iterator[Batch]:
    return model.batches(rows, max(1, min(batch_tokens, 2**28 // max(1, model.vocab_size))))


@torch.no_grad()
def _whole_loss(
    model: HookedModel, rows: Sequence[Rendered], added: _Added, batch_tokens: int
) -> float:
    parts = [_loss(model, batch, added) for batch in _batches(model, rows, batch_tokens)]
    return float(sum(float(loss) for loss, _ in parts)) / sum(count for _, count in parts)


@torch.no_grad()
def _stream_norm(
    model: HookedModel, rows: Sequence[Rendered], site: Site, batch_tokens: int
) -> float:
    """Mean norm of the stream over the tokens of the first batch."""
    batch = next(_batches(model, rows, batch_tokens))
    found: list[float] = []
    model.run(
        batch,
        {
            site: lambda stream: found.append(
                float(stream[batch.mask.to(stream.device)].double().norm(dim=-1).mean())
            )
        },
    )
    if not found[0] > 0:
        raise StateError(
            f"the stream at {site} is zero, so a vector there has no scale;"
            " check the model's weights"
        )
    return found[0]
