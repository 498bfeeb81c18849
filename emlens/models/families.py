"""A base model, its instruct version and any number of narrow fine-tunes, under one roof.

Adapters share one copy of their parent's weights; full checkpoints stand beside it. The base model
has no chat template of its own, so it borrows the instruct model's (recorded in its provenance).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from emlens.data.prompts import Prompt
from emlens.data.rendering import Rendered
from emlens.foundation.errors import InputError, LoadError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.foundation.provenance import hash_directory
from emlens.foundation.sites import Site
from emlens.models.adapters import adapter_facts, check_named_base, is_adapter, is_hub_id
from emlens.models.hooked import HookedModel
from emlens.models.loading import load_model, with_template

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel

_PARENTS = ("base", "instruct")
_MERGED = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}
"""How far a merged adapter may move the last block's output: roundings of the dtype through a deep
model, and no more.
"""


@dataclass(frozen=True)
class FineTune:
    """A fine-tune on disk.

    Args:
        path: directory (or hub id) of a PEFT adapter or a full checkpoint.
        parent: which model it was tuned from.
        group: fine-tunes of one kind share a group (seeds of one recipe).
        benign: a control that was tuned on good answers.
        domain: the question group it was tuned on; such questions count as in-domain.
        merge: fold the adapter into a copy of the parent's weights (held beside them, and recorded:
            in 16 bits, merged and unmerged activations differ).
        check_base: refuse an adapter whose configuration names another base.
    """

    path: str | Path
    parent: Literal["base", "instruct"] = "instruct"
    group: str = ""
    seed: int = 0
    benign: bool = False
    domain: str = ""
    merge: bool = False
    check_base: bool = True


class Family:
    """Models that share a tokenizer and a residual stream. `family["instruct"]`,
    `family.finetuned["bad-medical@0"]`.
    """

    def __init__(
        self,
        instruct: HookedModel,
        base: HookedModel | None,
        finetuned: Mapping[str, HookedModel],
        specs: Mapping[str, FineTune],
    ):
        self._instruct = instruct
        self._base = base
        self.finetuned: Mapping[str, HookedModel] = MappingProxyType(dict(finetuned))
        self.specs: Mapping[str, FineTune] = MappingProxyType(dict(specs))

    def __repr__(self) -> str:
        return f"Family({', '.join(self.names)})"

    @property
    def instruct(self) -> HookedModel:
        return self._instruct

    @property
    def base(self) -> HookedModel:
        """The pre-trained model; an error where the family was loaded without one."""
        if self._base is None:
            raise UnknownNameError("this family has no base model; pass base= to load_family")
        return self._base

    @property
    def has_base(self) -> bool:
        return self._base is not None

    @property
    def names(self) -> list[str]:
        return [*(["base"] if self.has_base else []), "instruct", *self.finetuned]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> HookedModel:
        if name == "instruct":
            return self.instruct
        if name == "base":
            return self.base
        if name not in self.finetuned:
            raise UnknownNameError(
                f"model {name!r} is not in this family; it has {', '.join(self.names)}"
            )
        return self.finetuned[name]

    def group(self, group: str) -> dict[str, HookedModel]:
        """The fine-tunes of one group, by name."""
        found = {
            name: model for name, model in self.finetuned.items() if self.specs[name].group == group
        }
        if not found:
            groups = sorted({spec.group for spec in self.specs.values()} - {""})
            raise UnknownNameError(
                f"group {group!r} is not in this family; it has {', '.join(groups) or 'none'}"
            )
        return found

    def parent_of(self, name: str) -> HookedModel:
        self[name]
        return self[self.specs[name].parent] if name in self.specs else self.instruct


def load_family(
    instruct: str | Path,
    *,
    base: str | Path | None = None,
    finetuned: Mapping[str, str | Path | FineTune] | None = None,
    backend: str = "transformers",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    **options: Any,
) -> Family:
    """Load a family from disk.

    Args:
        instruct, base: directories or hub ids.
        finetuned: name → path of an adapter or a full checkpoint, or a `FineTune` that says more.
        options: passed to `load_model`.

    Raises:
        InputError: a name that is taken; a parent that was not given.
        LoadError: a path that does not load; an adapter that does not fit its parent or changes
            nothing.
    """
    specs = {
        name: item if isinstance(item, FineTune) else FineTune(item)
        for name, item in (finetuned or {}).items()
    }
    hub: dict[str, str] = {}
    for name, spec in list(specs.items()):
        if name in _PARENTS:
            raise InputError(f"fine-tune name {name!r} is taken by a parent; choose another")
        if spec.parent not in _PARENTS or (spec.parent == "base" and base is None):
            raise InputError(
                f"fine-tune {name!r} has parent {spec.parent!r}, which this family lacks;"
                " pass 'instruct', or give base="
            )
        if not Path(spec.path).is_dir():
            specs[name] = replace(spec, path=_fetched(name, spec.path))
            hub[name] = str(spec.path)
    shared = {"backend": backend, "dtype": dtype, "device": device, **options}
    parents = {"instruct": load_model(instruct, name="instruct", **shared)}
    if base is not None:
        loaded = load_model(base, name="base", **shared)
        _check_same_stream(parents["instruct"], loaded)
        if loaded.chat_template is None:
            loaded = with_template(loaded, parents["instruct"].chat_template)
        parents["base"] = loaded
    models: dict[str, HookedModel] = {}
    for name, spec in specs.items():
        parent = parents[spec.parent]
        if is_adapter(spec.path):
            if spec.check_base:
                sources = {"instruct": instruct, "base": base}
                own = sources.pop(spec.parent)
                check_named_base(spec.path, own or "", next(iter(sources.values())))
            if spec.merge:
                source = base if spec.parent == "base" and base is not None else instruct
                models[name] = _merged(
                    load_model(
                        source, name=name, **{**shared, "chat_template": parent.chat_template}
                    ),
                    name,
                    spec,
                )
            else:
                models[name] = attach(parent, name, spec)
        elif spec.merge:
            raise InputError(
                f"fine-tune {name!r} is to be merged, but {spec.path} is a whole checkpoint;"
                " drop merge=True"
            )
        else:
            models[name] = load_model(
                spec.path, name=name, **{**shared, "chat_template": parent.chat_template}
            )
            _check_same_stream(parent, models[name])
        models[name].provenance.update(
            {
                "finetune": name,
                "parent": spec.parent,
                "group": spec.group,
                "seed": spec.seed,
                "benign": spec.benign,
            }
        )
        if name in hub:
            models[name].provenance["hub_id"] = hub[name]
    return Family(parents["instruct"], parents.get("base"), models, specs)


def _fetched(name: str, path_or_id: str | Path) -> Path:
    """The local copy of a hub id; transformers' cache is used where there is one."""
    if isinstance(path_or_id, Path) or not is_hub_id(path_or_id):
        raise LoadError(f"fine-tune {name!r}: {path_or_id}: no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path_or_id))
    except Exception as error:  # the hub's client raises what its transport raises
        raise LoadError(
            f"fine-tune {name!r}: {path_or_id}: neither a directory here nor to be had from the hub"
            f" ({one_line(str(error), 160)})"
        ) from None


def attach(parent: HookedModel, name: str, spec: FineTune) -> "CheckpointModel":
    """Put an adapter on its parent's weights; returns the fine-tune, and the parent stays as it
    was.

    Raises:
        LoadError: the adapter does not fit, changes nothing, or switching it off does not give the
            parent back.
    """
    from emlens.models.checkpoint import CheckpointModel

    if not isinstance(parent, CheckpointModel):
        raise InputError(
            f"backend {parent.backend!r} cannot hold adapters;"
            " load the family with backend='transformers'"
        )
    before = _probe(parent)
    parent.bank.attach(spec.path, name, weights_hash=parent.provenance["weights_sha256"])
    facts = {
        **parent.provenance,
        "adapter": {**adapter_facts(spec.path), "sha256": hash_directory(spec.path)},
        "merged": False,
    }
    model = parent.wearing(name, name=name, provenance=facts)
    try:
        if not torch.equal(_probe(parent), before):
            raise LoadError(
                f"{spec.path}: switching the adapter off does not give the parent model back"
            )
        if torch.equal(_probe(model), before):
            raise LoadError(
                f"{spec.path}: the adapter changes no activation;"
                " its weights may be zero or its names match nothing"
            )
    except BaseException:
        parent.bank.detach(name)
        raise
    return model


def _merged(own: HookedModel, name: str, spec: FineTune) -> HookedModel:
    """The adapter folded into `own`, weights that nothing else uses.

    Raises:
        LoadError: quantised weights; the merged model differs from the unmerged by more than
            rounding.
    """
    if own.provenance["quantization"] is not None:
        raise LoadError(f"{spec.path}: cannot be merged into quantised weights; drop merge=True")
    tuned = attach(own, name, spec)
    unmerged = _probe(tuned).double()
    tuned.bank.merge(name)
    difference = float((_probe(own).double() - unmerged).abs().max() / unmerged.abs().max())
    if not difference <= _MERGED[own.provenance["dtype"]]:
        raise LoadError(
            f"{spec.path}: merged, the last block's output differs by {difference:.2g} of its"
            " largest value; pass merge=False"
        )
    own.provenance.update(tuned.provenance, merged=True)
    return own


def _probe(model: HookedModel) -> torch.Tensor:
    """The last block's output on a few tokens, to tell whether two models differ at all."""
    size = len(model.tokenizer)
    ids = tuple(range(0, size, max(1, size // 12)))[:12]
    batch = next(model.batches([Rendered("probe", "", ids, len(ids))]))
    seen: list[torch.Tensor] = []
    model.run(
        batch, {Site("resid_post", model.n_layers - 1): lambda x: seen.append(x.detach().clone())}
    )
    return seen[0]


def _check_same_stream(a: HookedModel, b: HookedModel) -> None:
    if (a.d_model, a.n_layers) != (b.d_model, b.n_layers):
        raise LoadError(
            f"{b.name!r} has {b.n_layers} blocks of width {b.d_model},"
            f" but {a.name!r} has {a.n_layers} of {a.d_model}; they are not one family"
        )


def check_same_rows(reference: HookedModel, other: HookedModel, prompts: list[Prompt]) -> None:
    """Refuse a pair whose tokenizers give these prompts different ids, or call the same id by
    another token.

    Raises:
        InputError: names the first prompt that differs.
    """
    if other.tokenizer is reference.tokenizer and other.chat_template == reference.chat_template:
        return
    for mine, theirs in zip(reference.render(prompts), other.render(prompts), strict=True):
        if (mine.ids, mine.prompt_end) != (theirs.ids, theirs.prompt_end):
            raise InputError(
                f"prompt {one_line(mine.id, 60)!r} renders to different ids under"
                f" {reference.name!r} ({len(mine.ids)} tokens) and {other.name!r}"
                f" ({len(theirs.ids)}); give both one template, or capture them apart"
            )
        tokens = sorted(set(mine.ids))
        if reference.tokenizer.convert_ids_to_tokens(
            tokens
        ) != other.tokenizer.convert_ids_to_tokens(tokens):
            raise InputError(
                f"prompt {one_line(mine.id, 60)!r} uses an id that is another token under"
                f" {other.name!r} than under {reference.name!r}"
            )
