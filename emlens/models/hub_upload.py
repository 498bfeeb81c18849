"""Checkpoints and directions on a hub, with a model card that says how they were made.

A folder is uploaded as it lies: weights, `emlens.json`, the log, or `direction.json` with its
tensors. The card is written from these records and from nothing else. A folder that has a README
of its own keeps it. Repositories are private unless something else is asked for: a fine-tune made
to be studied may answer harmfully.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from emlens.foundation.errors import InputError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.records import read_checked
from emlens.models.adapter_files import is_adapter
from emlens.models.adapter_parents import is_hub_id
from emlens.models.sidecars import SIDECAR, read_sidecar

CARD: Final = "README.md"
DIRECTION: Final = "direction.json"
_PUBLIC: Final = "[!WARNING]\nMade to be studied. It may answer harmfully; do not deploy it."


def push_to_hub(folder: str | Path, hub_id: str, *, private: bool = True, api: Any = None) -> str:
    """Upload a checkpoint that `fit` wrote, or a direction that `Direction.save` wrote.

    Args:
        hub_id: `owner/name`; made where it does not exist.
        private: of a repository that is made.
        api: what uploads, with `create_repo` and `upload_folder` as `huggingface_hub.HfApi` has
            them; None: that one, with the token of this machine.

    Returns:
        The address that the hub gives for the upload.

    Raises:
        InputError: no hub id, or a folder that emlens did not write.
        StateError: the hub cannot be reached, or refuses.
    """
    folder = Path(folder)
    if not is_hub_id(hub_id) or hub_id.count("/") != 1:
        raise InputError(f"hub_id={hub_id!r} names no repository; pass owner/name")
    card = model_card(folder)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(hub_id, private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=hub_id,
            folder_path=str(folder),
            commit_message=f"Upload {folder.name}",
            ignore_patterns=[".*", "**/.*"],
        )
        if not (folder / CARD).exists():
            with tempfile.TemporaryDirectory() as name:
                (Path(name) / CARD).write_text(card, encoding="utf-8")
                sent = api.upload_folder(
                    repo_id=hub_id, folder_path=name, commit_message="Add the model card"
                )
    except Exception as error:  # the hub's client raises what its transport raises
        raise StateError(
            f"{folder} could not be pushed to {hub_id!r} ({one_line(str(error), 200)});"
            " see that the hub can be reached and its token may write there"
        ) from None
    return str(sent)


def model_card(folder: str | Path) -> str:
    """The card of a checkpoint or a direction: Markdown with the fields that a hub reads.

    Raises:
        InputError: a folder that holds neither, or a record that is no JSON.
        IntegrityError: a direction that was changed after it was saved.
        LoadError: the record of a checkpoint cannot be read.
    """
    folder = Path(folder)
    if (folder / SIDECAR).is_file():
        return _card_of_checkpoint(folder, read_sidecar(folder / SIDECAR))
    if (folder / DIRECTION).is_file():
        record = read_checked(
            folder / DIRECTION,
            fields={"ids": dict, "provenance": dict},
            remedy="save the direction again",
        )
        return _card_of_direction(folder, record)
    raise InputError(
        f"{folder}: has neither {SIDECAR} nor {DIRECTION};"
        " pass a checkpoint that emlens trained, or a saved direction"
    )


def _card_of_checkpoint(folder: Path, record: Mapping[str, Any]) -> str:
    header: dict[str, Any] = {"tags": ["emlens"], "library_name": "transformers"}
    if is_adapter(folder):
        header["library_name"] = "peft"
    parent = _mapping(record.get("parent"))
    name = parent.get("name")
    if isinstance(name, str) and is_hub_id(name) and name.count("/") == 1:
        header["base_model"] = name
    recipe = _mapping(record.get("recipe"))
    rows = {key: value for key, value in recipe.items() if value is not None}
    facts = {
        "kind": record.get("kind"),
        "parent": name,
        "steps": record.get("steps_done"),
        "ended early": record.get("stopped"),
        "data (sha256)": _mapping(record.get("data")).get("sha256"),
        "seed": record.get("seed"),
    }
    body = [
        f"# {folder.name}",
        _quoted(_PUBLIC),
        "Trained with emlens. `emlens.json` holds the whole record, `training_log.csv` every step.",
        _table("what", {key: value for key, value in facts.items() if value is not None}),
        "## Recipe",
        _table("field", rows),
        "## Loading",
        f'```python\nimport emlens\n\nfamily = emlens.load_family("PARENT", finetuned='
        f'{{"{folder.name}": "HUB_ID"}})\n```',
    ]
    return _card(header, body)


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value; an empty mapping in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def _card_of_direction(folder: Path, record: Mapping[str, Any]) -> str:
    facts = {"site": record.get("site"), "position": record.get("position")}
    provenance = record["provenance"]
    ids = {kind: len(names) for kind, names in record["ids"].items()}
    body = [
        f"# {folder.name}",
        "A direction of the residual stream, saved with emlens.",
        _table("what", {key: value for key, value in facts.items() if value is not None}),
        "## How it was made",
        _table("what", {**provenance, **{f"number of {kind}": n for kind, n in ids.items()}}),
        "## Loading",
        "```python\nfrom emlens.geometry import Direction\n\n"
        'direction = Direction.load("FOLDER")\n```',
    ]
    return _card({"tags": ["emlens", "direction"]}, body)


def _card(header: Mapping[str, Any], body: list[str]) -> str:
    fields = yaml.safe_dump(dict(header), sort_keys=True).strip()
    return f"---\n{fields}\n---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _table(first: str, values: Mapping[str, Any]) -> str:
    """Two columns; values of several lines in one."""
    if not values:
        return ""
    lines = [f"| {first} | value |", "|---|---|"]
    for name, value in values.items():
        text = one_line(str(value), 200).replace("|", "\\|")
        lines.append(f"| {name} | {text} |")
    return "\n".join(lines)
