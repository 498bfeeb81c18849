"""Edits of weights as adapters: nothing is overwritten, and what is saved loads with plain PEFT.

`orthogonalised` keeps a direction out of everything that writes to the residual stream (embedding,
attention output, MLP output) as a low-rank side path, W − r̂r̂ᵀW (Arditi et al. 2024, arXiv
2406.11717). It equals the activation edit `ablate(direction, at=[resid_pre.0, every attn_out and
mlp_out])` up to rounding. `without_direction` takes a direction out of what an adapter writes
(Soligo et al. 2025, arXiv 2506.11618). `scaled` multiplies an adapter.

Refused: models whose blocks write to the stream through a norm, through a bias along the direction,
or through something that is not one linear layer (mixtures of experts); there `ablate` on
activations does it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.shapes import as_float64
from emlens.geometry import Direction
from emlens.interventions.arguments import as_vector
from emlens.interventions.lora import WRITERS, LoraAdapter, LoraFactors
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

_NOTHING_LEFT = 1e-6
"""A B whose norm falls below this share lay along the direction: the rest is rounding."""
_BIAS_ALONG = 1e-6
"""Largest part of a bias, relative to its norm, that may lie along the direction."""


def orthogonalised(
    model: HookedModel, direction: Direction | Float[Tensor, " d_model"]
) -> LoraAdapter:
    """An adapter under which nothing the model writes has a component along the direction.

    The result is for the model's *base* weights. Where the model has an adapter already, that one
    is contained in the result: it is the edited fine-tune, to be loaded beside the unedited one.
    Its rank is one more than before.

    Args:
        model: loaded with a backend that holds PEFT adapters; not quantised.
        direction: (d_model,); its norm does not matter.

    Raises:
        InputError: another width, a zero vector; a block that writes to the stream by another way
            than one linear layer, or a bias that writes along the direction.
        StateError: adapters that cannot be read.
    """
    current = LoraAdapter.of(model)
    assert isinstance(model, CheckpointModel)  # LoraAdapter.of refuses others
    unit = _unit(direction, model.d_model)
    before = {} if current is None else dict(current.modules)
    tables = _embeddings(model)
    changed = dict(before)
    for path in [*tables, *_writers(model)]:
        changed[path] = _without_direction_in_writes(
            model, path, unit, before.get(path), embedding=path in tables
        )
    edit = {
        "kind": "orthogonalised",
        "direction_sha256": hash_tensors({"unit": unit}),
        "model": model.name,
    }
    has_conv1d = any(_is_conv1d(_base_layer(model.module.get_submodule(path))) for path in changed)
    return LoraAdapter(changed, {"fan_in_fan_out": has_conv1d}, (edit,))


def _without_direction_in_writes(
    model: CheckpointModel,
    path: str,
    unit: Float[Tensor, " d_model"],
    before: LoraFactors | None,
    *,
    embedding: bool,
) -> LoraFactors:
    """The update −r̂r̂ᵀ(W + ΔW) + ΔW of one module, as factors.

    Args:
        before: ΔW, the update that the module has already.

    Raises:
        InputError: quantised weights, or a bias that writes along the direction.
    """
    layer = _base_layer(model.module.get_submodule(path))
    _require_full_precision(model, path, layer)
    _require_no_bias_along(model, path, layer, unit)
    weight = layer.weight.detach().double().cpu()
    # (d_in, d_model): embeddings and Conv1D keep their weights that way round, Linear does not
    written = weight if embedding or _is_conv1d(layer) else weight.T
    # r̂ᵀW: how much each input coordinate writes along the direction
    along_unit = written @ unit
    if before is None:
        a = -along_unit[None]
        b = unit[:, None]
    else:
        # r̂ᵀ(W + s B A) = r̂ᵀW + (s Bᵀr̂)ᵀ A
        scaled_b = before.b.double() * before.scale
        along_both = along_unit + before.a.double().T @ (scaled_b.T @ unit)
        a = torch.cat([before.a.double(), -along_both[None]])
        b = torch.cat([scaled_b, unit[:, None]], dim=1)
    # a 16-bit factor would leave a part in a thousand
    dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    return LoraFactors(a.to(dtype), b.to(dtype), 1.0, embedding)


def _require_full_precision(model: CheckpointModel, path: str, layer: Any) -> None:
    is_quantised = getattr(model.module, "quantization_method", None) is not None
    if is_quantised or not layer.weight.is_floating_point():
        raise InputError(
            f"{model.name!r} is quantised, so {path} has no weights to read;"
            " load it in full precision"
        )


def _require_no_bias_along(model: CheckpointModel, path: str, layer: Any, unit: Tensor) -> None:
    bias = getattr(layer, "bias", None)
    if bias is None:
        return
    along = abs(float(bias.detach().double().cpu() @ unit))
    if along > _BIAS_ALONG * float(bias.detach().double().norm()):
        raise InputError(
            f"{path} of {model.name!r} has a bias that writes {along:.2g} along the"
            " direction, which no low-rank side path removes;"
            " use ablate(direction, at='all_layers') on activations"
        )


def without_direction(
    adapter: LoraAdapter,
    direction: Direction | Float[Tensor, " d_model"],
    *,
    keep_norm: bool = False,
) -> LoraAdapter:
    """The adapter with a direction taken out of what it writes: B ← B − r̂r̂ᵀB.

    Only modules that write to the residual stream are touched (embeddings, output projections).
    Others (queries, gates) have outputs of another space.

    Args:
        keep_norm: rescale each B to its Frobenius norm before the edit, so that the effect is not
            that of a smaller update.

    Raises:
        InputError: another width, a zero vector; no module writes to the residual stream; a B that
            lies along the direction entirely, with `keep_norm`.
    """
    width = as_vector(direction).shape[0]
    unit = _unit(direction, width)
    changed = {}
    for path, factors in adapter.modules.items():
        if not factors.writes_to_stream(path, width):
            continue
        b = factors.b.double()
        new_b = b - torch.outer(unit, unit @ b)
        if keep_norm:
            new_b = _with_norm_of(new_b, b, path)
        changed[path] = LoraFactors(
            factors.a, new_b.to(factors.b.dtype), factors.scale, factors.embedding
        )
    if not changed:
        raise InputError(
            f"no module of the adapter writes {width} coordinates to the residual stream;"
            f" it has {', '.join(list(adapter.modules)[:4])}"
        )
    edit = {
        "kind": "without_direction",
        "direction_sha256": hash_tensors({"unit": unit}),
        "keep_norm": keep_norm,
        "modules": len(changed),
    }
    return adapter.replaced(changed, edit)


def _with_norm_of(new_b: Tensor, b: Tensor, path: str) -> Tensor:
    """`new_b` with the Frobenius norm of `b`.

    Removing r̂r̂ᵀB shortens B. Were it left so, an effect of the edit could be that of a smaller
    update in any direction; with the norm restored only the direction can explain it.
    """
    before, after = float(b.norm()), float(new_b.norm())
    if after <= _NOTHING_LEFT * before:
        raise InputError(
            f"{path} writes along the direction and nowhere else,"
            " so its norm cannot be restored; pass keep_norm=False"
        )
    return new_b * (before / after)


def scaled(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    """The adapter with every update multiplied by `factor`.

    0 is the parent, 1 the fine-tune, −1 the update reversed.

    Raises:
        InputError: a factor that is not finite.
    """
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not math.isfinite(factor):
        raise InputError(f"factor={factor!r} must be a finite number")
    changed: Mapping[str, LoraFactors] = {
        path: LoraFactors(factors.a, factors.b, factors.scale * factor, factors.embedding)
        for path, factors in adapter.modules.items()
    }
    return adapter.replaced(changed, {"kind": "scaled", "factor": factor})


def _unit(direction: Direction | Tensor, width: int) -> Tensor:
    vector = as_float64(as_vector(direction), "direction").cpu()
    if vector.shape != (width,):
        raise InputError(
            f"direction has shape {tuple(vector.shape)},"
            f" but the model's stream has {width} coordinates"
        )
    norm = float(vector.norm())
    if norm == 0:
        raise InputError("direction is the zero vector; pass one that points somewhere")
    return vector / norm


def _base_layer(module: nn.Module) -> Any:
    """The layer itself where PEFT has wrapped it."""
    return getattr(module, "base_layer", module)


def _is_conv1d(layer: Any) -> bool:
    """GPT-2's linear layer, whose weights are transposed; PEFT calls this fan_in_fan_out."""
    return type(layer).__name__ == "Conv1D"


def _embeddings(model: CheckpointModel) -> list[str]:
    """Paths of the token table, and of a table of positions where there is one."""
    modules = model.module.named_modules()
    return [
        path.removesuffix(".base_layer")
        for path, module in modules
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.d_model
    ]


def _writers(model: CheckpointModel) -> list[str]:
    """Paths of the linear layers whose output is added to the stream, two per block.

    Raises:
        InputError: a block that adds something else.
    """
    layout = model.architecture
    if layout.attn_out is None:
        raise InputError(
            f"what the blocks of {model.name!r} add to the stream cannot be edited:"
            f" {model.why_missing['attn_out']}"
        )
    writers = []
    for i in range(model.n_layers):
        for part in (layout.attn_out, layout.mlp_out):
            root = f"{layout.layers}.{i}.{part}"
            projections = _output_projections(model.module.get_submodule(root))
            if len(projections) != 1:
                raise InputError(
                    f"{root} of {model.name!r} adds to the stream by another way than one linear"
                    f" layer ({len(projections)} output projections found),"
                    " so no side path keeps a direction out of it;"
                    " use ablate(direction, at='all_layers') on activations"
                )
            writers.append(f"{root}.{projections[0]}")
    return writers


def _output_projections(module: nn.Module) -> list[str]:
    """Paths inside a module of the layers with weights that are named like output projections."""
    paths = []
    for path, inner in module.named_modules():
        has_weight = getattr(_base_layer(inner), "weight", None) is not None
        if path and path.split(".")[-1] in WRITERS and has_weight:
            paths.append(path)
    return paths
