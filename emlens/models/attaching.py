"""An adapter on its parent: put on, proved, and merged where that is asked for.

Plain LoRA adapters live on the parent's own modules and are switched on one at a time. Every other
kind gets a tree of modules of its own on the parent's weights; only what it changes of the base
itself (biases, a resized or retrained embedding) is copied. In both cases the logits of real
prompts must be those of PEFT's own model, and the parent must stay as it was.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.data.rendering import Rendered
from emlens.foundation.errors import EmlensError, InputError, LoadError
from emlens.foundation.files import one_line
from emlens.models.adapter_chats import use_own_chats
from emlens.models.adapter_files import AdapterFiles, adapter_provenance, plain_name
from emlens.models.adapter_parents import parent_differences
from emlens.models.hooked import HookedModel

if TYPE_CHECKING:
    from emlens.models.batches import Batch
    from emlens.models.checkpoint import CheckpointModel

_ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
"""How far the same weights, added up in another order, may move a logit, relative to the largest:
roundings of the dtype through a deep model, and no more.
"""
_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a + b\n\n# What should I do if I feel unwell?",
)
_SPREAD = 12
"""Tokens from all over the vocabulary that are read beside the texts."""
_TRAINED = 64
"""Trained tokens that are read at most."""


def attach(
    parent: HookedModel,
    name: str,
    path: str | Path,
    *,
    merge: bool = False,
    own_chats: bool = True,
    own_template: bool = True,
    template_date: str | None = None,
) -> "CheckpointModel":
    """Put an adapter on its parent's weights; gives the fine-tune and does not change the parent.

    Args:
        merge: fold it into the weights, which must be those of a copy that nothing else uses.
        own_chats: render by the tokenizer and the chat template beside the adapter, where they
            differ from the parent's.
        own_template: False: of these two the tokenizer alone.
        template_date: the day that this template is told, where the parent's asks for none.

    Raises:
        InputError: a backend that holds no adapters.
        LoadError: the adapter does not fit, changes nothing, does not give what PEFT gives, or
            cannot be merged.
    """
    from emlens.models.checkpoint import CheckpointModel

    if not isinstance(parent, CheckpointModel):
        raise InputError(
            f"backend {parent.backend!r} cannot hold adapters;"
            " load the family with backend='transformers'"
        )
    if merge and parent.provenance["quantization"] is not None:
        raise LoadError(
            f"{path}: cannot be merged into quantised weights; drop merge=True,"
            " or load the parent without a quantization"
        )
    files = AdapterFiles(Path(path))
    differences = parent_differences(path, parent.provenance)
    own_weights = _changed_weights(files, parent)
    batches = _probe_batches(parent, files)
    before = _logits(parent, batches)
    holder = parent
    if own_weights or not files.is_low_rank:
        holder = _on_tree_of_its_own(parent, files, own_weights)
    holder.bank.attach(files, name)
    record = {**adapter_provenance(path), "sha256": files.sha256}
    if own_weights:
        record["own_weights"] = len(own_weights)
    if differences:
        record["parent_differs"] = differences
    provenance = {**parent.provenance, "adapter": record, "merged": False}
    model = holder.with_adapter(name, name=name, provenance=provenance)
    try:
        after = _check_attached(parent, model, files, batches, before)
        if merge:
            _merge(model, files, batches, after)
        if own_chats:
            use_own_chats(model, files.path, own_template=own_template, template_date=template_date)
    except BaseException:
        if name in holder.bank.names:
            holder.bank.detach(name)
        raise
    return model


def _changed_weights(files: AdapterFiles, parent: "CheckpointModel") -> set[str]:
    """Weights of the base that the file holds with other values than the parent has.

    Embeddings that PEFT saved beside an adapter are mostly frozen copies; those are passed over.
    """
    weights = dict(parent.module.named_parameters(remove_duplicate=False))
    weights = {plain_name(name): weight for name, weight in weights.items()}
    changed = set()
    for weight, value in files.base_tensors(parent.module).values():
        current = weights[weight]
        if current.shape != value.shape or not torch.equal(
            value.to(current.dtype), current.detach().cpu()
        ):
            changed.add(weight)
    if _resized_rows(files, parent.module) is not None:
        changed |= set(_embedding_names(parent.module))
    return changed


def _embedding_names(module: Any) -> list[str]:
    """Names of the weights of the embedding and the output matrix; one where they are tied."""
    layers = (module.get_input_embeddings(), module.get_output_embeddings())
    ids = {id(getattr(layer, "base_layer", layer).weight) for layer in layers if layer is not None}
    named = module.named_parameters(remove_duplicate=False)
    return [plain_name(name) for name, weight in named if id(weight) in ids]


def _resized_rows(files: AdapterFiles, module: Any) -> int | None:
    """Rows of the embeddings in the file, where the vocabulary was resized before training."""
    names = set(_embedding_names(module))
    rows = int(module.get_input_embeddings().weight.shape[0])
    for name, value in files.tensors.items():
        if plain_name(name) in names and value.ndim == 2 and value.shape[0] != rows:
            return int(value.shape[0])
    return None


def _on_tree_of_its_own(
    parent: "CheckpointModel", files: AdapterFiles, own_weights: set[str]
) -> "CheckpointModel":
    """The parent on a second tree of modules, with copies of the weights that the adapter changes.

    Raises:
        LoadError: the vocabulary cannot be resized.
    """
    module: Any = parent.bank.bare_twin(own_weights)
    rows = _resized_rows(files, parent.module)
    if rows is not None:
        try:
            # every row comes from the file
            module.resize_token_embeddings(rows, mean_resizing=False)
        except (NotImplementedError, RuntimeError, ValueError, AttributeError) as error:
            raise LoadError(
                f"{files.path}: has a vocabulary of {rows}, to which the parent's cannot be resized"
                f" ({one_line(str(error), 160)}); merge it and pass the full checkpoint"
            ) from None
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return parent.on_tree(module)


def _check_attached(
    parent: "CheckpointModel",
    model: "CheckpointModel",
    files: AdapterFiles,
    batches: Sequence["Batch"],
    before: Tensor,
) -> Tensor:
    """Logits of the fine-tune, which are PEFT's own and not the parent's; the parent is as before.

    Raises:
        LoadError: one of these does not hold.
    """
    if not torch.equal(_logits(parent, batches), before):
        raise LoadError(
            f"{files.path}: switching the adapter off does not give the parent model back"
        )
    after = _logits(model, batches)
    try:
        of_peft = torch.cat([_peft_logits(model, batch) for batch in batches])
    except EmlensError:
        raise
    except Exception as error:  # each kind of PEFT raises what it likes
        raise LoadError(
            f"{files.path}: PEFT itself cannot run this adapter on the parent"
            f" ({one_line(str(error), 200)})"
        ) from None
    difference = _difference(after, of_peft)
    if not difference <= _ROUNDING[model.provenance["dtype"]]:  # "not" catches NaN too
        raise LoadError(
            f"{files.path}: PEFT's own model gives other logits than the model whose sites are read"
            f" (by {difference:.2g} of the largest): {one_line(files.kind, 40)} also acts outside"
            " its modules, or this backend does not run all of them"
        )
    if after.shape == before.shape and torch.equal(after, before):
        raise LoadError(
            f"{files.path}: the adapter changes no logit; its update is zero, or too small for"
            f" {model.provenance['dtype']}"
        )
    return after


def _peft_logits(model: "CheckpointModel", batch: "Batch") -> Float[Tensor, "token vocab"]:
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    return model.bank.through_peft(str(model.adapter), inputs)[batch.mask.bool()]


def _merge(
    model: "CheckpointModel", files: AdapterFiles, batches: Sequence["Batch"], unmerged: Tensor
) -> None:
    """Fold the adapter into the weights of `model`.

    Raises:
        LoadError: the merged model differs from the unmerged by more than rounding.
    """
    model.bank.merge(str(model.adapter))
    model.adapter = None
    difference = _difference(_logits(model, batches), unmerged)
    if not difference <= _ROUNDING[model.provenance["dtype"]]:
        raise LoadError(
            f"{files.path}: merged, the logits differ by {difference:.2g} of the largest;"
            " pass merge=False"
        )
    model.provenance["merged"] = True


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _probe_batches(model: "CheckpointModel", files: AdapterFiles) -> list["Batch"]:
    """Two texts, tokens from all over the vocabulary, and the tokens that the adapter trains."""
    size = min(len(model.tokenizer), model.vocab_size)
    spread = list(range(0, size, max(1, size // _SPREAD)))[:_SPREAD]
    # the embedding may have more rows than the tokenizer has tokens, and an adapter may train them
    trained = [token for token in files.trained_tokens if 0 <= token < model.vocab_size]
    rows = [*model.render(PromptSet.from_texts(list(_TEXTS)), remember=False)]
    for ids in (spread, trained[:_TRAINED]):
        if ids:
            rows.append(Rendered("probe", "", tuple(ids), len(ids)))
    return list(model.batches(_within(rows, model.max_length)))


def _within(rows: Sequence[Rendered], longest: int | None) -> list[Rendered]:
    if longest is None:
        return list(rows)
    return [Rendered(row.id, "", row.ids[:longest], len(row.ids[:longest])) for row in rows]


def _logits(model: HookedModel, batches: Sequence["Batch"]) -> Float[Tensor, "token vocab"]:
    """Logits of every token, without any edit that is active here."""
    unedited = copy.copy(model)
    of_tokens = []
    for batch in batches:
        of_tokens.append(unedited._logits(batch)[batch.mask.bool()])
    return torch.cat(of_tokens)
