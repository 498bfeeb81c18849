"""Models that are known by what was captured of them: members of a family whose weights are not
here.

A store that `capture_for_study` wrote names its rows by the content of their prompts, so a row is
found only by a prompt of the same text. A store of the study's questions alone, captured with the
questions' own ids, is read too. Stores of a fine-tune and its parent must share what a live pair
shares; what differs is refused with both values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from emlens.activations import Activations, ActivationStore
from emlens.activations.capture_provenance import MUST_MATCH, provenance_differences
from emlens.activations.memory import Key
from emlens.data import PromptSet
from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import one_line, sha256_file
from emlens.foundation.provenance import hash_json
from emlens.models import Family, FineTune, HookedModel

SAME_PROMPTS = {
    "model.chat_template_sha256": "another chat template",
    "sites": "other sites",
    "positions": "other positions",
}
"""Provenance that all stores of a study share, beside what every pair shares."""


def content_id(prompt: Prompt) -> str:
    """Stands for what a prompt says: text, turns and kept answer."""
    messages = [message.to_record() for message in prompt.messages or ()]
    return hash_json([prompt.text, messages, prompt.response])[:24]


@dataclass(frozen=True, eq=False)
class CapturedRows:
    """A store, and where each prompt is in it.

    Args:
        row_ids: content of a prompt → id of its row; empty where that id is the content itself.
    """

    store: ActivationStore
    row_ids: Mapping[str, str]

    def read(
        self, name: str, prompts: PromptSet, sites: Sequence[str], positions: Sequence[str]
    ) -> Activations:
        """The rows of these prompts, with the prompts' ids.

        Raises:
            InputError: a prompt, site or position that was not captured.
        """
        lacking = self.lacks(name, prompts, sites, positions)
        if lacking is not None:
            raise InputError(lacking)
        ids = self._rows_of(prompts)
        number = {row: i for i, row in enumerate(self.store.ids)}
        index = torch.tensor([number[row] for row in ids], dtype=torch.long)
        values: dict[Key, Tensor] = {}
        for site in sites:
            for position in positions:
                values[site, position] = self.store[site, position][index]
        rendered = [self.store.provenance["rendered_sha256"], ids]
        return Activations(
            values,
            ids=prompts.ids,
            groups=prompts.groups,
            sites=sites,
            positions=positions,
            provenance={**self.store.provenance, "rendered_sha256": hash_json(rendered)},
        )

    def lacks(
        self, name: str, prompts: PromptSet, sites: Sequence[str], positions: Sequence[str]
    ) -> str | None:
        """In a sentence, what of these was not captured; None where all of it was."""
        where = f"captures of {name!r} ({self.store.directory})"
        held = set(self.store.ids)
        rows = self._rows_of(prompts)
        missing = [i for i, row in enumerate(rows) if row not in held]
        if missing:
            return (
                f"{where} hold {len(rows) - len(missing)} of {len(rows)} prompts, and not"
                f" {one_line(prompts.ids[missing[0]], 60)!r}; capture again with this"
                " configuration, its files, system messages and seed"
            )
        for kind, names, stored in (
            ("site", sites, self.store.sites),
            ("position", positions, self.store.positions),
        ):
            for item in names:
                if item not in stored:
                    return (
                        f"{where} hold no {kind} {item}, but {', '.join(stored)};"
                        " capture again with this configuration, or name what is there"
                    )
        return None

    def _rows_of(self, prompts: PromptSet) -> list[str]:
        contents = [content_id(prompt) for prompt in prompts]
        return [self.row_ids.get(content, content) for content in contents]


class AbsentModel(HookedModel):
    """A model of which only name and shape are known; nothing can be run on it.

    Args:
        rows: what was captured of it, where something was.
    """

    backend = "none"

    def __init__(
        self,
        name: str,
        *,
        n_layers: int,
        d_model: int,
        provenance: Mapping[str, Any],
        rows: CapturedRows | None = None,
    ):
        super().__init__(
            name=name,
            tokenizer=None,
            n_layers=n_layers,
            d_model=d_model,
            device=torch.device("cpu"),
            max_length=None,
            chat_template=None,
            provenance=provenance,
        )
        self.rows = rows

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"model {self.name!r} is not here, only what was captured of it;"
            " give it under family, without captures, to run it"
        )

    def run(self, *_: Any, **__: Any) -> Float[Tensor, "batch token vocab"] | None:
        self._refuse()

    def _render(self, *_: Any, **__: Any) -> Any:
        self._refuse()

    def _generate(self, *_: Any, **__: Any) -> Tensor:
        self._refuse()

    @property
    def vocab_size(self) -> int:
        self._refuse()

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        self._refuse()


def captured_rows(model: HookedModel) -> CapturedRows:
    """What was captured of a model that is not here.

    Raises:
        InputError: nothing was captured.
    """
    if not isinstance(model, AbsentModel) or model.rows is None:
        raise InputError(f"nothing was captured of model {model.name!r}; name its store")
    return model.rows


def captured_family(
    directories: Mapping[str, Path], specs: Mapping[str, FineTune], questions: PromptSet
) -> Family:
    """A family whose models are known by their stores.

    Args:
        directories: model → store; `instruct` is among them.
        specs: fine-tune → what the configuration says of it.
        questions: as they are asked; a store of these alone is read by its own ids.

    Raises:
        InputError: no such store; one without `instruct` or without the parent of a fine-tune; one
            captured under interventions; a fine-tune of another parent or system message.
        IntegrityError: stores that were not captured alike.
    """
    models = {}
    for name, directory in directories.items():
        models[name] = open_captured(name, directory, questions)
    if "instruct" not in models:
        raise InputError("captures lack 'instruct'; capture the model the fine-tunes start from")
    for name, model in models.items():
        _check_alike("instruct", models["instruct"], name, model, SAME_PROMPTS)
    finetuned = {name: model for name, model in models.items() if name in specs}
    for name, model in finetuned.items():
        spec = specs[name]
        if spec.parent not in models:
            raise InputError(
                f"captures lack {spec.parent!r}, the parent of fine-tune {name!r}; capture it too,"
                " or name the other parent"
            )
        _check_alike(spec.parent, models[spec.parent], name, model, MUST_MATCH)
        _check_parent(spec, models[spec.parent], name, model)
    return Family(models["instruct"], models.get("base"), finetuned, dict(specs))


def open_captured(name: str, directory: Path, questions: PromptSet) -> AbsentModel:
    """A model that is known by one store.

    Args:
        questions: as they are asked; a store of these alone is read by its own ids.

    Raises:
        InputError: a store that does not say what was captured, or was captured under
            interventions.
    """
    store = ActivationStore.open(directory)
    provenance = store.provenance
    for needed in ("model", "n_layers", "rendered_sha256", "prompts_sha256"):
        if needed not in provenance:
            raise InputError(
                f"captures of {name!r}: {directory} does not say {needed};"
                " pass a store that capture(..., store=...) or `emlens study --capture` wrote"
            )
    if provenance.get("interventions"):
        raise InputError(
            f"captures of {name!r}: {directory} was captured under interventions;"
            " capture the model as it is"
        )
    row_ids = {}
    if provenance["prompts_sha256"] == questions.content_hash:
        row_ids = {content_id(prompt): prompt.id for prompt in questions}
    first = store[store.sites[0], store.positions[0]]
    return AbsentModel(
        name,
        n_layers=int(provenance["n_layers"]),
        d_model=first.shape[1],
        provenance={
            **provenance["model"],
            "captured_sha256": sha256_file(directory / "manifest.json"),
        },
        rows=CapturedRows(store, row_ids),
    )


def _check_alike(
    first: str, before: AbsentModel, second: str, after: AbsentModel, names: Mapping[str, str]
) -> None:
    """Refuse stores that differ in how they were captured."""
    for difference in provenance_differences(_provenance(before), _provenance(after), names):
        raise IntegrityError(
            f"captures of {first!r} and {second!r} differ in {difference};"
            " capture both with one configuration, on one machine"
        )


def _provenance(model: AbsentModel) -> Mapping[str, Any]:
    return {} if model.rows is None else model.rows.store.provenance


def _check_parent(spec: FineTune, parent: AbsentModel, name: str, model: AbsentModel) -> None:
    """Refuse a fine-tune that was captured on another parent than the one it is compared with."""
    captured = model.provenance
    for field, configured in (("parent", spec.parent), ("system", spec.system)):
        if captured.get("finetune") is not None and (captured.get(field) or "") != configured:
            raise IntegrityError(
                f"captures of {name!r} say {field} {captured.get(field)!r}, but the configuration"
                f" says {configured!r}; capture again, or write into the configuration what was"
                " captured"
            )
    # an adapter runs on its parent's weights, so both hashes are of the same files
    if captured.get("adapter") is None:
        return
    for field in ("weights_sha256", "commit"):
        if captured.get(field) != parent.provenance.get(field):
            raise IntegrityError(
                f"captures of {name!r} were taken on a parent whose {field} is"
                f" {one_line(str(captured.get(field)), 80)}, but those of {spec.parent!r} have"
                f" {one_line(str(parent.provenance.get(field)), 80)}; capture both with one parent"
            )
