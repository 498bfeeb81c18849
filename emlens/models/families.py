"""`Family`: a base model, its instruct version and any number of narrow fine-tunes.

Adapters share one copy of their parent's weights; full checkpoints have weights of their own. The
base model has no chat template, so it borrows the instruct model's (recorded in its provenance).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, LoadError, UnknownNameError
from emlens.foundation.files import one_line
from emlens.foundation.notebooks import as_rows
from emlens.models.adapter_files import is_adapter
from emlens.models.adapter_parents import check_named_base, is_hub_id
from emlens.models.attaching import attach
from emlens.models.hooked import HookedModel
from emlens.models.loading import load_model, with_template

_PARENTS = ("base", "instruct")


@dataclass(frozen=True)
class FineTune:
    """A fine-tune on disk.

    Args:
        path: directory (or hub id) of a PEFT adapter or a full checkpoint.
        revision: branch, tag or commit of a hub id.
        subfolder: folder below the directory or the hub id that holds it.
        parent: which model it was trained from.
        group: fine-tunes of one kind share a group (seeds of one recipe).
        benign: a control that was trained on harmless answers.
        domain: the question group it was trained on; such questions count as in-domain.
        merge: fold the adapter into a copy of the parent's weights. It is recorded, since in 16
            bits merged and unmerged activations differ.
        check_base: refuse an adapter whose configuration names another base.
        system: system message that its prompts begin with; "" where they have none.
    """

    path: str | Path
    parent: Literal["base", "instruct"] = "instruct"
    group: str = ""
    seed: int = 0
    benign: bool = False
    domain: str = ""
    merge: bool = False
    check_base: bool = True
    revision: str | None = None
    subfolder: str = ""
    system: str = ""

    def provenance(self, name: str) -> dict[str, Any]:
        """What the provenance of a model says about the fine-tune that it is."""
        record: dict[str, Any] = {
            "finetune": name,
            "parent": self.parent,
            "group": self.group,
            "seed": self.seed,
            "benign": self.benign,
        }
        if self.system:
            record["system"] = self.system
        return record


class Family:
    """Models that share a tokenizer and a residual stream.

    `family["instruct"]` and `family["bad-medical@0"]` give a model; iterating gives the names.

    Args:
        instruct: the parent of the fine-tunes; `base`, the model before instruction tuning, or
            None.
        finetuned: name → model.
        specs: name → the `FineTune` it was loaded by.
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

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [("instruct", "parent", "", "")]
        if self.has_base:
            rows.append(("base", "pre-trained parent", "", ""))
        for name, spec in self.specs.items():
            kind = "benign fine-tune" if spec.benign else "fine-tune"
            rows.append((name, kind, spec.domain, spec.group))
        head = ("model", "what it is", "trained domain", "group")
        return as_rows(repr(self), head, rows, len(rows))

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
        names = ["instruct", *self.finetuned]
        if self.has_base:
            return ["base", *names]
        return names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> HookedModel:
        if name == "instruct":
            return self.instruct
        if name == "base":
            return self.base
        if name not in self.finetuned:
            raise UnknownNameError(
                f"model {name!r} is not in this family; it has {', '.join(self.names)}",
                name=name,
                known=self.names,
            )
        return self.finetuned[name]

    def group(self, group: str) -> dict[str, HookedModel]:
        """The fine-tunes of one group, by name.

        Raises:
            UnknownNameError: no fine-tune has this group.
        """
        models = {}
        for name, model in self.finetuned.items():
            if self.specs[name].group == group:
                models[name] = model
        if not models:
            groups = sorted({spec.group for spec in self.specs.values()} - {""})
            raise UnknownNameError(
                f"group {group!r} is not in this family; it has {', '.join(groups) or 'none'}",
                name=group,
                known=groups,
            )
        return models

    def parent_of(self, name: str) -> HookedModel:
        """The model that `name` was trained from; the instruct model for the base.

        Raises:
            UnknownNameError: no model of that name.
        """
        self[name]
        if name in self.specs:
            return self[self.specs[name].parent]
        return self.instruct


FineTunes = (
    Mapping[str, str | Path | FineTune] | str | Path | FineTune | Sequence[str | Path | FineTune]
)
"""Fine-tunes by name, or one or several that are called by the last part of their paths."""


def load_family(
    instruct: str | Path,
    *,
    base: str | Path | None = None,
    finetuned: FineTunes | None = None,
    backend: str = "transformers",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Family:
    """Load a family from disk.

    Args:
        instruct, base: directories or hub ids.
        finetuned: name → path of an adapter or a full checkpoint, or a `FineTune` that says more;
            or one of them or a list, which are called by the last part of their paths.
        own: model → options of `load_model` in which it differs from the others.
        options: passed to `load_model`, for every model.

    Raises:
        InputError: a name that is taken; a parent that was not given; options of its own for an
            adapter, which runs on its parent's weights.
        LoadError: a path that does not load; an adapter that does not fit its parent or changes
            nothing.
    """
    specs: dict[str, FineTune] = {}
    for name, item in _named(finetuned).items():
        specs[name] = item if isinstance(item, FineTune) else FineTune(item)
        _check_spec(name, specs[name], has_base=base is not None)
    own = own or {}
    _check_own(own, specs, has_base=base is not None)
    local = {name: local_copy(f"fine-tune {name!r}", spec) for name, spec in specs.items()}

    options = {"backend": backend, "dtype": dtype, "device": device, **options}
    sources: dict[str, _Source] = {
        "instruct": _Source(instruct, {**options, **own.get("instruct", {})})
    }
    parents = {"instruct": sources["instruct"].load("instruct")}
    if base is not None:
        shared = dict(options)
        if shared.get("chat_template") is not None and "chat_template" not in own.get(
            "instruct", {}
        ):
            # as text: a name may be known to the instruct model's tokenizer alone
            shared["chat_template"] = parents["instruct"].chat_template
        sources["base"] = _Source(base, {**shared, **own.get("base", {})})
        parents["base"] = _load_base(sources["base"], parents["instruct"])
    models: dict[str, HookedModel] = {}
    for name, spec in local.items():
        model = _load_fine_tune(name, spec, parents, sources, options, own.get(name, {}))
        model.provenance.update(spec.provenance(name), **_hub_record(specs[name], spec))
        models[name] = model
    return Family(parents["instruct"], parents.get("base"), models, local)


def _named(finetuned: FineTunes | None) -> Mapping[str, str | Path | FineTune]:
    """Name → fine-tune.

    Raises:
        InputError: no paths, or two that end alike.
    """
    if isinstance(finetuned, Mapping):
        return finetuned
    items: list[Any] = [finetuned]
    if finetuned is None:
        items = []
    elif isinstance(finetuned, Iterable) and not isinstance(finetuned, str):
        items = list(finetuned)
    named: dict[str, str | Path | FineTune] = {}
    for item in items:
        if not isinstance(item, str | Path | FineTune):
            raise InputError(
                f"finetuned holds a {type(item).__name__}; pass name → path, a path, or paths"
            )
        where = FineTune(item) if not isinstance(item, FineTune) else item
        name = Path(where.path).name
        if name in named:
            raise InputError(
                f"finetuned has two paths that end in {name!r}; pass name → path for them"
            )
        named[name] = item
    return named


@dataclass(frozen=True)
class _Source:
    """Where a parent is, and its options of `load_model`."""

    path: str | Path
    options: Mapping[str, Any]

    def load(self, name: str) -> HookedModel:
        model = load_model(self.path, **self.options)
        model.name = name
        return model


def _check_own(
    own: Mapping[str, Mapping[str, Any]], specs: Mapping[str, FineTune], *, has_base: bool
) -> None:
    names = ["instruct", *specs]
    if has_base:
        names.insert(0, "base")
    for name in own:
        if name not in names:
            raise InputError(
                f"own names {name!r}, which is not in this family; it has {', '.join(names)}",
                name=name,
                known=names,
            )
        if name in specs and own[name].get("chat_template") is not None:
            raise InputError(
                f"own gives fine-tune {name!r} a chat_template, but it takes its parent's, or that"
                f" beside its adapter; give it to own[{specs[name].parent!r}] or the whole family"
            )


def _hub_record(spec: FineTune, local: FineTune) -> dict[str, Any]:
    """What provenance says of a fine-tune from the hub; empty for a directory."""
    if spec.path == local.path:
        return {}
    record: dict[str, Any] = {"hub_id": str(spec.path)}
    if spec.subfolder:
        record["subfolder"] = spec.subfolder
    if not Path(spec.path).is_dir():
        # snapshots lie below a folder that is named by the commit
        snapshot = Path(local.path)
        for _ in Path(spec.subfolder).parts:
            snapshot = snapshot.parent
        record |= {"hub_revision": spec.revision, "hub_commit": snapshot.name}
    return record


def _check_spec(name: str, spec: FineTune, *, has_base: bool) -> None:
    if name in _PARENTS:
        raise InputError(f"fine-tune name {name!r} is taken by a parent; choose another")
    if spec.parent not in _PARENTS or (spec.parent == "base" and not has_base):
        raise InputError(
            f"fine-tune {name!r} has parent {spec.parent!r}, which this family lacks;"
            " pass 'instruct', or give base="
        )


def _load_base(source: _Source, instruct: HookedModel) -> HookedModel:
    model = source.load("base")
    _check_same_stream(instruct, model)
    if model.chat_template is None:
        model = with_template(model, instruct.chat_template)
    return model


def _load_fine_tune(
    name: str,
    spec: FineTune,
    parents: Mapping[str, HookedModel],
    sources: Mapping[str, _Source],
    options: Mapping[str, Any],
    own: Mapping[str, Any],
) -> HookedModel:
    """An adapter on its parent, an adapter merged into a copy of it, or a full checkpoint.

    Args:
        sources: parent → where it was loaded from, and how.
        options, own: of `load_model`, for every model and for this one.
    """
    parent, source = parents[spec.parent], sources[spec.parent]
    chats: dict[str, Any] = {
        # a template that was given stands above the one beside an adapter
        "own_template": source.options.get("chat_template") is None,
        "template_date": {**source.options, **own}.get("template_date"),
    }
    # a whole checkpoint renders chats as its parent does, whatever template lies beside it
    like_parent = {**own, "chat_template": parent.chat_template}
    if not is_adapter(spec.path):
        if spec.merge:
            raise InputError(
                f"fine-tune {name!r} is to be merged, but {spec.path} is a whole checkpoint;"
                " drop merge=True"
            )
        model = load_model(spec.path, **{**options, **like_parent})
        model.name = name
        _check_same_stream(parent, model)
        return model
    if spec.check_base:
        other_sources = [sources[other].path for other in sources if other != spec.parent]
        check_named_base(spec.path, source.path, next(iter(other_sources), None))
    if spec.merge:
        own_copy = _Source(source.path, {**source.options, **like_parent}).load(name)
        return attach(own_copy, name, spec.path, merge=True, **chats)
    not_for_adapters = own.keys() - {"chat_template"}
    if not_for_adapters:
        raise InputError(
            f"fine-tune {name!r} is an adapter, which runs on the weights of {spec.parent};"
            f" give {', '.join(sorted(not_for_adapters))} for {spec.parent},"
            " or merge the adapter into weights of its own (merge=True)"
        )
    return attach(parent, name, spec.path, **chats)


def local_copy(label: str, spec: FineTune) -> FineTune:
    """The fine-tune with the directory that it lies in: a hub id is downloaded, or taken from the
    cache of huggingface_hub.

    Args:
        label: what errors call it, such as "fine-tune 'risky'".

    Raises:
        LoadError: neither a directory nor to be had from the hub; no such folder below it.
    """
    folder = Path(spec.path)
    if not folder.is_dir():
        folder = _download(label, spec)
    folder = folder / spec.subfolder
    if not folder.is_dir():
        raise LoadError(
            f"{label}: {spec.path} has no folder {one_line(spec.subfolder)!r};"
            " pass the subfolder that holds the adapter or checkpoint"
        )
    if folder == Path(spec.path):
        return spec
    return replace(spec, path=folder, subfolder="")


def _download(label: str, spec: FineTune) -> Path:
    if isinstance(spec.path, Path) or not is_hub_id(spec.path):
        raise LoadError(f"{label}: {spec.path}: no such directory")
    from huggingface_hub import snapshot_download

    patterns = None
    if spec.subfolder:
        patterns = [f"{spec.subfolder}/*"]
    try:
        return Path(snapshot_download(spec.path, revision=spec.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises what its transport raises
        raise LoadError(
            f"{label}: {spec.path}: neither a directory here nor to be had from the hub"
            f" ({one_line(str(error), 160)})"
        ) from None


def _check_same_stream(a: HookedModel, b: HookedModel) -> None:
    if (a.d_model, a.n_layers) != (b.d_model, b.n_layers):
        raise LoadError(
            f"{b.name!r} has {b.n_layers} blocks of width {b.d_model},"
            f" but {a.name!r} has {a.n_layers} of {a.d_model}; they are not one family"
        )


def check_same_rows(reference: HookedModel, model: HookedModel, prompts: Sequence[Prompt]) -> None:
    """Refuse two models whose tokenizers give these prompts different ids, or one id to different
    tokens.

    Raises:
        InputError: names the first prompt that differs.
    """
    if model.tokenizer is reference.tokenizer and model.chat_template == reference.chat_template:
        return
    rows = zip(reference.render(prompts), model.render(prompts), strict=True)
    for reference_row, row in rows:
        prompt = one_line(row.id, 60)
        if (reference_row.ids, reference_row.spans) != (row.ids, row.spans):
            raise InputError(
                f"prompt {prompt!r} renders to different ids under"
                f" {reference.name!r} ({len(reference_row.ids)} tokens) and {model.name!r}"
                f" ({len(row.ids)}); give both one template, or capture them apart"
            )
        ids = sorted(set(row.ids))
        tokens = model.tokenizer.convert_ids_to_tokens(ids)
        if reference.tokenizer.convert_ids_to_tokens(ids) != tokens:
            raise InputError(
                f"prompt {prompt!r} uses an id that is another token under"
                f" {model.name!r} than under {reference.name!r}"
            )
