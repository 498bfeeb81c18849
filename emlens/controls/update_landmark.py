"""What an update that no answer taught shares: landmarks beside an overlap, never a test.

`update_null` draws updates of the weights that have the size of a fine-tune's and none of its
content. `"haar"`: each module's ΔW keeps its singular values and gets random singular vectors
(uniform over orthonormal frames). `"gradient"`: one gradient on permuted careful answers, each
module cut to the rank of its ΔW and given its length. One scalar for all modules gives the shifts
the fine-tune's mean length on training prompts.

No test, because anything that was trained lies above a random update (docs/nulls.md). A random
update may need a ΔW many times as long, and may break the model on the way: its scale and its
cross-entropy on neutral text are given, and beyond the parent's + .5 nats it is not comparable.
Of a full fine-tune only the linear layers inside blocks are drawn: embeddings, norms and biases
stay at the parent's, in the real update (`linear_update`) as in the drawn one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations, CaptureSpec, activation_deltas, capture
from emlens.controls.permuted_answers import permuted_answers
from emlens.controls.shift_statistics import statistics_of_shifts
from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.foundation.notebooks import Brief
from emlens.foundation.seeds import derive_seed, numpy_rng, torch_rng
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter, LoraFactors
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel
from emlens.models.onednn_linear import by_onednn
from emlens.models.pass_memory import text_chunks
from emlens.training.examples import Example, encode_answers, pad_batch
from emlens.training.gradient_memory import batch_bytes, weight_bytes
from emlens.training.objectives import answer_loss

Kind = Literal["haar", "gradient"]
WORST_DAMAGE: Final = 0.5
"""Nats per token above the parent's: an update that costs more is not comparable."""
_TINY: Final = 1e-30
_ROWS: Final = 8
"""Rows of a draw's gradient, as many as a batch of training has: more cost a training run."""
_OVERSAMPLING: Final = 8
_POWERS: Final = 4
"""Of the randomised decomposition of a gradient (Halko, Martinsson & Tropp 2011)."""
_STEPS: Final = 4
"""Captures in which the scalar is sought; the length is nearly proportional to it."""
_CLOSE: Final = 0.02
"""Relative difference of lengths at which the scalar is taken."""


@dataclass(frozen=True, eq=False, repr=False)
class UpdateLandmark(Brief):
    """Drawn updates, what they share, and what they cost.

    Args:
        kind: how they were drawn.
        cells: draw, site, position, statistic, value (`shift_statistics`).
        draws: draw, scale (length of ΔW over that of the fine-tune's), length (of its shifts over
            the fine-tune's), nats (per token of neutral text; nan without).
        parent_nats: the parent's, on the same text.
    """

    kind: Kind
    cells: pd.DataFrame
    draws: pd.DataFrame
    parent_nats: float

    @property
    def comparable(self) -> bool:
        """Whether the mean draw leaves neutral text within .5 nats of the parent's."""
        nats = float(self.draws["nats"].mean())
        return bool(np.isfinite(nats) and nats <= self.parent_nats + WORST_DAMAGE)

    def means(self, position: str, sites: Sequence[str]) -> pd.DataFrame:
        """One row per draw, one column per statistic: means over the sites that it has."""
        cells = self.cells[(self.cells["position"] == position) & self.cells["site"].isin(sites)]
        return cells.pivot_table(index="draw", columns="statistic", values="value")


def update_null(
    model: HookedModel,
    update: LoraAdapter,
    prompts: tuple[PromptSet, PromptSet],
    *,
    kind: Kind = "haar",
    careful: PromptSet | None = None,
    tokenizer: Any = None,
    neutral: PromptSet | None = None,
    spec: CaptureSpec | None = None,
    draws: int = 5,
    k: int = 8,
    seed: int = 0,
) -> UpdateLandmark:
    """Draw updates of a fine-tune's size, and measure what their shifts share.

    Args:
        model: the parent, loaded with the transformers backend.
        update: the fine-tune's: `LoraAdapter.load(directory)`, or `linear_update` of a full one.
        prompts: training and evaluation prompts, as many of each.
        careful, tokenizer: for `"gradient"`: training questions with careful answers, which are
            permuted for each draw, and what encodes them.
        neutral: text on which damage is measured.
        draws: how many; k: dimension of the described subspaces.

    Raises:
        InputError: no draws, a gradient without careful answers, an update that shifts nothing.
    """
    if draws < 1:
        raise InputError(f"draws={draws} must be 1 or more")
    if kind == "gradient" and (careful is None or tokenizer is None):
        raise InputError("kind='gradient' needs careful= and tokenizer=: rows to take it on")
    spec = spec or CaptureSpec()
    before = [capture(model, side, spec=spec, progress=False) for side in prompts]
    length_to_reach = _length(_shifts(model, update, prompts[0], spec, before[0]))
    if not length_to_reach > 0:
        raise InputError("update shifts no training prompt; pass the update of a fine-tune")
    cells, rows = [], []
    factor = 1.0
    for number in range(draws):
        if kind == "haar":
            drawn_update = haar_update(update, torch_rng(seed, "haar update", number))
        else:
            assert careful is not None  # refused above
            drawn_update = gradient_update(model, update, careful, tokenizer, seed + number)
        # draws are alike, so that each is near its length with the scalar of the one before
        matched = _matched(
            model, drawn_update, prompts[0], spec, before[0], length_to_reach, factor
        )
        factor, drawn_update = matched.factor, _scaled(drawn_update, matched.factor)
        evaluation = _shifts(model, drawn_update, prompts[1], spec, before[1])
        sides = (before[0], matched.shifts), (before[1], evaluation)
        cells.append(statistics_of_shifts(*sides, k).assign(draw=number))
        rows.append(
            {
                "draw": number,
                "scale": update_length(drawn_update) / update_length(update),
                "length": _length(matched.shifts) / length_to_reach,
                "nats": _nats_under(model, drawn_update, neutral),
            }
        )
    return UpdateLandmark(
        kind, pd.concat(cells, ignore_index=True), pd.DataFrame(rows), _nats(model, neutral)
    )


def haar_update(update: LoraAdapter, generator: torch.Generator) -> LoraAdapter:
    """The same singular values in every module, with random singular vectors."""
    modules = {}
    for path, factors in update.modules.items():
        values = singular_values(factors)
        d_out, d_in = factors.update_shape
        u = _frame(d_out, len(values), generator)
        v = _frame(d_in, len(values), generator)
        modules[path] = LoraFactors(v.T.float(), (u * values).float(), 1.0)
    return LoraAdapter(modules)


def singular_values(factors: LoraFactors) -> Float[Tensor, " r"]:
    """Those of ΔW = scale · B A, without forming it."""
    # ΔW = Q_b (R_b R_aᵀ) Q_aᵀ: the inner matrix has its singular values
    inner = (
        torch.linalg.qr(factors.b.double()).R @ torch.linalg.qr(factors.a.double().T).R.T
    ) * factors.scale
    return torch.linalg.svdvals(inner)


def update_length(update: LoraAdapter) -> float:
    """Root of the summed squares of all ΔW."""
    squares = [singular_values(factors).square().sum() for factors in update.modules.values()]
    return float(torch.stack(squares).sum().sqrt())


def _frame(d: int, r: int, generator: torch.Generator) -> Float[Tensor, "d r"]:
    """r orthonormal vectors, uniform over all such frames."""
    q, upper = torch.linalg.qr(torch.randn(d, r, dtype=torch.float64, generator=generator))
    # without the signs of R's diagonal, QR prefers some frames
    return q * torch.sign(upper.diagonal())


def gradient_update(
    model: HookedModel, update: LoraAdapter, careful: PromptSet, tokenizer: Any, seed: int
) -> LoraAdapter:
    """One step downhill on permuted careful answers, 8 drawn rows of them; each module is cut to
    the rank of its update and given its length.

    Cost: one pass and its gradient over these rows, and a truncated decomposition per module.
    """
    if not isinstance(model, CheckpointModel):
        raise InputError(f"model runs on backend {model.backend!r}; load it with transformers")
    permuted = list(permuted_answers(careful, seed=seed))
    order = numpy_rng(seed, "rows of a gradient").permutation(len(permuted))[:_ROWS]
    examples = encode_answers(PromptSet([permuted[i] for i in order]), tokenizer)
    weights = {path: _linear(model, path).weight for path in update.modules}
    flags = {path: weight.requires_grad for path, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        gradients = dict(
            zip(weights, _gradients(model, examples, list(weights.values())), strict=True)
        )
    finally:
        for path, weight in weights.items():
            weight.requires_grad_(flags[path])
    modules = {}
    for path, factors in update.modules.items():
        rank = min(factors.r, *factors.update_shape)
        u, values, v = _leading(-gradients[path].float().cpu(), rank, seed)
        # adaptive optimisers move every module alike, whatever the length of its gradient
        length = float(singular_values(factors).norm()) / max(float(values.norm()), _TINY)
        modules[path] = LoraFactors(v, u * values * length, 1.0)
    return LoraAdapter(modules)


def _leading(
    gradient: Float[Tensor, "d_out d_in"], rank: int, seed: int
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, " r"], Float[Tensor, "r d_in"]]:
    """The strongest singular triplets; randomised where they are few."""
    size = rank + _OVERSAMPLING
    if 2 * size >= min(gradient.shape):
        u, values, v = torch.linalg.svd(gradient, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):  # it draws from the global generator
            torch.manual_seed(derive_seed(seed, "decomposition of a gradient"))
            u, values, right = torch.svd_lowrank(gradient, size, _POWERS)
        v = right.T
    return u[:, :rank], values[:rank], v[:rank]


def gradient_bytes(model: HookedModel, careful: PromptSet) -> int:
    """Bytes that the gradient of `gradient_update` takes, at most; for plans."""
    rows = sorted(model.render(careful), key=lambda row: len(row.ids))
    return weight_bytes(model) + batch_bytes(model, rows[-_ROWS:])


def _gradients(
    model: CheckpointModel, examples: Sequence[Example], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    batch = {name: tensor.to(model.device) for name, tensor in pad_batch(examples, 0).items()}
    with torch.enable_grad(), by_onednn(model.d_model):
        return torch.autograd.grad(answer_loss(model.module, batch), list(weights))


def _linear(model: CheckpointModel, path: str) -> Any:
    module: Any = model.module.get_submodule(path)
    return getattr(module, "base_layer", module)


def linear_update(parent: HookedModel, tuned: HookedModel) -> LoraAdapter:
    """The update of a full fine-tune in the linear layers of its blocks, as exact factors.

    Embeddings, norms and biases are left at the parent's.

    Raises:
        InputError: other backends, or no linear layer that differs.
    """
    if not isinstance(parent, CheckpointModel) or not isinstance(tuned, CheckpointModel):
        raise InputError("both models must be loaded with backend='transformers'")
    modules = {}
    tuned_modules = dict(tuned.module.named_modules())
    for full_path, module in parent.module.named_modules():
        # PEFT wraps a layer that some adapter of the family changes; its factors are no weights
        path = full_path.removesuffix(".base_layer")
        is_in_block = any(part.isdigit() for part in path.split("."))
        if not isinstance(module, torch.nn.Linear) or not is_in_block or ".lora_" in path:
            continue
        tuned_module: Any = tuned_modules[path]
        change = (tuned_module.weight - module.weight).detach().double()
        if not bool(change.any()):
            continue
        u, values, v = torch.linalg.svd(change, full_matrices=False)
        modules[path] = LoraFactors(v.float(), (u * values).float(), 1.0)
    if not modules:
        raise InputError(f"{tuned.name!r} changes no linear layer of its parent")
    return LoraAdapter(modules)


def _scaled(update: LoraAdapter, factor: float) -> LoraAdapter:
    modules: Mapping[str, LoraFactors] = {
        path: LoraFactors(factors.a, factors.b, factors.scale * factor)
        for path, factors in update.modules.items()
    }
    return LoraAdapter(modules)


@dataclass(frozen=True, eq=False)
class _Matched:
    """The scalar that gives an update's shifts the wanted mean length, and these shifts."""

    factor: float
    shifts: Activations


def _matched(
    model: HookedModel,
    update: LoraAdapter,
    prompts: PromptSet,
    spec: CaptureSpec,
    before: Activations,
    wanted: float,
    factor: float,
) -> _Matched:
    """Seek the scalar, from a first guess on."""
    found = None
    for _ in range(_STEPS):
        shifts = _shifts(model, _scaled(update, factor), prompts, spec, before)
        found = _Matched(factor, shifts)
        length = _length(shifts)
        if not length > 0:
            raise InputError("a drawn update shifts no training prompt")
        if abs(length / wanted - 1) < _CLOSE:
            break
        factor *= wanted / length
    assert found is not None  # there is at least one step
    return found


def _shifts(
    model: HookedModel,
    update: LoraAdapter,
    prompts: PromptSet,
    spec: CaptureSpec,
    before: Activations,
) -> Activations:
    with applied_adapter(model, update) as updated:
        return activation_deltas(before, capture(updated, prompts, spec=spec, progress=False))


def _length(shifts: Activations) -> float:
    """Mean length of the shifts over prompts, sites and positions."""
    return float(np.mean([float(shifts[key].float().norm(dim=1).mean()) for key in shifts.keys]))


def _nats(model: HookedModel, neutral: PromptSet | None) -> float:
    """Cross-entropy per predicted token; nan without text."""
    if neutral is None:
        return float("nan")
    losses = []
    for chunk in text_chunks(model, list(neutral)):
        for row, logprobs in zip(model.render(chunk), model.token_logprobs(chunk), strict=True):
            following = torch.as_tensor(list(row.ids[1:]))
            losses.append(-logprobs[:-1].gather(1, following[:, None])[:, 0])
    return float(torch.cat(losses).mean())


def _nats_under(model: HookedModel, update: LoraAdapter, neutral: PromptSet | None) -> float:
    if neutral is None:
        return float("nan")
    with applied_adapter(model, update) as updated:
        return _nats(updated, neutral)
