"""Edits of weights as adapters: nothing is overwritten, and what is written to disk loads with
plain PEFT.

`orthogonalised` keeps a direction out of everything that writes to the residual stream (embedding,
attention output, MLP output) as a low-rank side path, W − r̂r̂ᵀW (Arditi et al. 2024, arXiv
2406.11717). It equals the activation edit `ablate(direction, at=[resid_pre.0, every attn_out and
mlp_out])` up to rounding. `without_direction` takes a direction out of what an adapter writes
(Soligo et al. 2025, arXiv 2506.11618), `scaled` multiplies an adapter.

Refused: models whose blocks write to the stream through a norm, through a bias along the direction,
or through something that is not one linear layer (mixtures of experts); there `ablate` on
activations does it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emlens.foundation.errors import InputError
from emlens.foundation.provenance import hash_tensors
from emlens.foundation.shapes import as_float64
from emlens.geometry import Direction
from emlens.interventions.lora import WRITERS, LoraAdapter, LoraFactors
from emlens.models.checkpoint import CheckpointModel
from emlens.models.hooked import HookedModel

_BIAS_ALONG = 1e-6
"""Largest part of a bias, relative to its norm, that may lie along the direction."""


def orthogonalised(
    model: HookedModel, direction: Direction | Float[Tensor, " d_model"]
) -> LoraAdapter:
    """An adapter under which nothing the model writes has a component along the direction.

    The adapter is for the model's *base* weights. Where the model wears an adapter already, that
    one is contained: the result is the edited fine-tune, to be loaded beside the unedited one. The
    rank is one more than before.

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
    own = dict(current.modules) if current is not None else {}
    changed = dict(own)
    tables = _embeddings(model)
    for path in [*tables, *_writers(model)]:
        embedding = path in tables
        layer = _base_layer(model.module.get_submodule(path))
        if (
            getattr(model.module, "quantization_method", None) is not None
            or not layer.weight.is_floating_point()
        ):
            raise InputError(
                f"{model.name!r} is quantised, so {path} has no weights to read;"
                " load it in full precision"
            )
        bias = getattr(layer, "bias", None)
        if bias is not None:
            along = abs(float(bias.detach().double().cpu() @ unit))
            if along > _BIAS_ALONG * float(bias.detach().double().norm()):
                raise InputError(
                    f"{path} of {model.name!r} has a bias that writes {along:.2g} along the"
                    " direction, which no low-rank side path removes;"
                    " use ablate(direction, at='all_layers') on activations"
                )
        weight = layer.weight.detach().double().cpu()
        # (d_in, d_model)
        written = weight if embedding or type(layer).__name__ == "Conv1D" else weight.T
        along_unit = written @ unit
        before = own.get(path)
        # a 16-bit factor would leave a part in a thousand
        dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        a, b = [-along_unit[None]], [unit[:, None]]
        if before is not None:
            kept = before.b.double() * before.scale
            a, b = (
                [
                    before.a.double(),
                    -(along_unit + before.a.double().T @ (kept.T @ unit))[None],
                ],
                [kept, unit[:, None]],
            )
        changed[path] = LoraFactors(
            torch.cat(a).to(dtype), torch.cat(b, dim=1).to(dtype), 1.0, embedding
        )
    edit = {
        "kind": "orthogonalised",
        "direction_sha256": hash_tensors({"unit": unit}),
        "model": model.name,
    }
    config = {
        "fan_in_fan_out": any(
            type(_base_layer(model.module.get_submodule(p))).__name__ == "Conv1D" for p in changed
        )
    }
    return LoraAdapter(changed, config, (edit,))


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
        keep_norm: rescale each B to its Frobenius norm of before, so that a smaller update does not
            explain the effect.

    Raises:
        InputError: another width, a zero vector; no module writes to the residual stream; a B that
            lies along the direction entirely.
    """
    width = direction.vector.shape[0] if isinstance(direction, Direction) else direction.shape[0]
    unit = _unit(direction, width)
    changed = {}
    for path, factors in adapter.modules.items():
        if not factors.writes_to_stream(path, width):
            continue
        b = factors.b.double()
        left = b - torch.outer(unit, unit @ b)
        if keep_norm:
            before, after = float(b.norm()), float(left.norm())
            if after <= 1e-6 * before:
                raise InputError(
                    f"{path} writes along the direction and nowhere else,"
                    " so its norm cannot be restored; pass keep_norm=False"
                )
            left = left * (before / after) if before else left
        changed[path] = LoraFactors(
            factors.a, left.to(factors.b.dtype), factors.scale, factors.embedding
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


def scaled(adapter: LoraAdapter, factor: float) -> LoraAdapter:
    """The adapter with every update multiplied by `factor`: 0 is the parent, 1 the fine-tune, −1
    the update reversed.

    Raises:
        InputError: a factor that is not finite.
    """
    if (
        isinstance(factor, bool)
        or not isinstance(factor, int | float)
        or factor != factor
        or abs(factor) == float("inf")
    ):
        raise InputError(f"factor={factor!r} must be a finite number")
    changed: Mapping[str, LoraFactors] = {
        path: LoraFactors(factors.a, factors.b, factors.scale * factor, factors.embedding)
        for path, factors in adapter.modules.items()
    }
    return adapter.replaced(changed, {"kind": "scaled", "factor": factor})


def _unit(direction: Direction | Tensor, width: int) -> Tensor:
    vector = as_float64(
        direction.vector if isinstance(direction, Direction) else direction, "direction"
    ).cpu()
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
    return getattr(module, "base_layer", module)


def _embeddings(model: CheckpointModel) -> list[str]:
    """Paths of the token table, and of a table of positions where there is one."""
    modules = model.module.named_modules()
    return [
        path.removesuffix(".base_layer")
        for path, module in modules
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.d_model
    ]


def _writers(model: CheckpointModel) -> list[str]:
    """Paths of the linear layers whose output is added to the stream, two a block.

    Raises:
        InputError: a block that adds something else.
    """
    layout = model.architecture
    found = []
    for i in range(model.n_layers):
        for part in (layout.attn_out, layout.mlp_out):
            root = f"{layout.layers}.{i}.{part}"
            inside = [
                f"{root}.{name}"
                for name, module in model.module.get_submodule(root).named_modules()
                if name
                and name.split(".")[-1] in WRITERS
                and getattr(_base_layer(module), "weight", None) is not None
            ]
            if len(inside) != 1:
                raise InputError(
                    f"{root} of {model.name!r} adds to the stream by another way than one linear"
                    f" layer ({len(inside)} output projections found),"
                    " so no side path keeps a direction out of it;"
                    " use ablate(direction, at='all_layers') on activations"
                )
            found += inside
    return found
