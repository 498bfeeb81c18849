"""The tokenizer and the chat template that lie beside an adapter: used where they say other things
than the parent's.

A fine-tune answers as it was trained to be asked. A template that was given for the whole family
stands above the one beside the adapter; a template that asks for the day is told the family's.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlens.data.templates import date_of, template_of
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, sha256_text
from emlens.models.checkpoint_files import saved_template, tokenizer_hash
from emlens.models.loading import chat_provenance, saved_tokenizer

if TYPE_CHECKING:
    from emlens.models.checkpoint import CheckpointModel

_log = logging.getLogger("emlens")


def use_own_chats(
    model: "CheckpointModel",
    path: Path,
    *,
    own_template: bool = True,
    template_date: str | None = None,
) -> None:
    """Give a fine-tune the tokenizer and the template of its adapter's directory, and say so.

    Args:
        own_template: False leaves the template as it is.
        template_date: the day that the template is told where the parent's does not ask for one.

    Raises:
        LoadError: a tokenizer that cannot be read, or has more tokens than the model.
    """
    tokenizer = _own_tokenizer(model, path)
    template = model.chat_template
    template_beside = saved_template(path) if own_template else None
    if template_beside is not None:
        try:
            template = template_of(tokenizer, template_beside, date_of(template) or template_date)
        except InputError as error:
            raise LoadError(f"{path}: {one_line(str(error), 200)}") from None
    used = []
    if tokenizer is not model.tokenizer:
        used.append("tokenizer")
        model.provenance["tokenizer_sha256"] = tokenizer_hash(path)
    if template is not None and template != model.chat_template:
        used.append("chat_template")
        model.provenance["chat_template_sha256"] = sha256_text(template)
        model.provenance.pop("chat_template_lent", None)
    if not used:
        return
    model.provenance.update(chat_provenance(tokenizer, template, model.name))
    model.provenance["adapter"]["uses_own"] = used
    model.speak_by(tokenizer, template)
    _log.warning("%r: uses its adapter's own %s, not its parent's", model.name, " and ".join(used))


def _own_tokenizer(model: "CheckpointModel", path: Path) -> Any:
    """The tokenizer beside an adapter; the parent's where there is none, or it is the same one."""
    has_one = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if not has_one or tokenizer_hash(path) == model.provenance.get("tokenizer_sha256"):
        return model.tokenizer
    try:
        tokenizer = saved_tokenizer(str(path), path)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise LoadError(
            f"{path}: its tokenizer cannot be read ({one_line(str(error), 200)})"
        ) from None
    if _says(tokenizer) == _says(model.tokenizer):
        return model.tokenizer
    if len(tokenizer) > model.vocab_size:
        raise LoadError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, but the model has"
            f" {model.vocab_size} rows of embeddings;"
            " save the adapter with save_embedding_layers=True"
        )
    return tokenizer


def _says(tokenizer: Any) -> tuple[Any, ...]:
    """What decides ids: the file without lengths and padding, and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    return rules, [getattr(tokenizer, name, None) for name in names]
