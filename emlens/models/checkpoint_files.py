"""The files of a checkpoint directory, and what each kind of them hashes to.

Weights are hashed as weights: over every tensor that transformers would load, wherever the index
says that it lies. Splitting a checkpoint into other files changes nothing; one other number does.
Configuration, tokenizer and chat template have hashes of their own, so that a comment in a
template is not taken for other weights.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from emlens.data.templates import with_date
from emlens.foundation.bounded import bounded_bytes, check_tensor_file
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import canonical_json, one_line, read_json, sha256_file, sha256_text
from emlens.foundation.provenance import hash_tensors

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
_SAYS_NOTHING = frozenset({"_name_or_path", "transformers_version"})
"""Of a configuration: where it came from, and what wrote it."""
_MOST_TEMPLATE = 2**20


def read_object(path: str | Path) -> dict[str, Any]:
    """A JSON object in a file of somebody else.

    Raises:
        LoadError: not readable, or not an object.
    """
    try:
        content = read_json(path)
    except InputError as error:
        reason = str(error).removeprefix(str(path)).lstrip(":, ")
        raise LoadError(f"{path}: cannot be read ({one_line(reason, 160)})") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path}: holds a {type(content).__name__}, not a JSON object")
    return content


def weight_files(directory: str | Path) -> list[Path]:
    """The files whose tensors transformers would load, in the order of their names.

    Raises:
        LoadError: no weights, an index that cannot be read, or a file that is not there.
    """
    directory = Path(directory)
    first = _first_file(directory)
    files = [first]
    if first.name.endswith(".index.json"):
        weight_map = read_object(first).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise LoadError(f"{first}: holds no weight_map; pass a whole checkpoint")
        files = [directory / name for name in sorted(set(map(str, weight_map.values())))]
    for file in files:
        if not file.is_file():
            raise LoadError(f"{file}: no such file of weights; pass a whole checkpoint")
    return files


def _first_file(directory: Path) -> Path:
    """The file of weights, or the index that names them."""
    names: tuple[str, ...] = _WEIGHTS
    config = directory / "config.json"
    if config.is_file():
        name_in_config = read_object(config).get("transformers_weights")
        if isinstance(name_in_config, str):
            names = (name_in_config,)
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise LoadError(
        f"{directory}: holds no weights ({_WEIGHTS[0]} or {_WEIGHTS[2]});"
        " pass a directory saved by save_pretrained"
    )


def hash_weights(directory: str | Path) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every tensor that would be loaded.

    Weights in pickled files are hashed as files.

    Raises:
        LoadError: see `weight_files`; a file that is not safetensors.
    """
    files = weight_files(directory)
    if any(file.suffix != ".safetensors" for file in files):
        return sha256_text("\n".join(sha256_file(file) for file in files))
    return hash_tensors(SavedTensors(files))


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when it is asked for.

    Raises:
        LoadError: a file that is not safetensors.
    """

    def __init__(self, files: list[Path]):
        self._file_of: dict[str, Any] = {}
        for file in files:
            check_tensor_file(file)
            try:
                opened = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise LoadError(f"{file}: cannot be read ({one_line(str(error), 160)})") from None
            self._file_of.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def checkpoint_hashes(directory: str | Path) -> dict[str, str | None]:
    """SHA-256 of each kind of file: weights, configuration, tokenizer, chat template.

    None for a kind of which the directory holds no file.

    Raises:
        LoadError: see `hash_weights`; a configuration that is not a JSON object.
    """
    directory = Path(directory)
    return {
        "weights_sha256": hash_weights(directory),
        "config_sha256": _config_hash(directory / "config.json"),
        "tokenizer_sha256": tokenizer_hash(directory),
        "chat_template_sha256": template_hash(directory),
    }


def _config_hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    config = read_object(path)
    return sha256_text(
        canonical_json({key: config[key] for key in config if key not in _SAYS_NOTHING})
    )


def tokenizer_hash(directory: Path) -> str | None:
    """Over the files of a tokenizer, without a chat template that is written into them."""
    parts = []
    for name in _TOKENIZER:
        file = directory / name
        if not file.is_file():
            continue
        if name == "tokenizer_config.json":
            config = read_object(file)
            config.pop("chat_template", None)
            parts.append(f"{name} {sha256_text(canonical_json(config))}")
        else:
            parts.append(f"{name} {sha256_file(file)}")
    return sha256_text("\n".join(parts)) if parts else None


def template_hash(directory: Path) -> str | None:
    """Of the chat template that the tokenizer would have, as `chat_template_sha256` of a model."""
    template = saved_template(directory)
    # with the date that a template is told which asks for the day
    return None if template is None else sha256_text(str(with_date(template, None)))


def saved_template(directory: Path) -> str | None:
    """The chat template of a directory; the one called "default" where there are several."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        template = _template_in(file)
        if template is not None:
            return template
    return None


def _template_in(file: Path) -> str | None:
    if file.suffix == ".jinja":
        try:
            return bounded_bytes(file, _MOST_TEMPLATE).decode("utf-8")
        except (InputError, UnicodeDecodeError) as error:
            raise LoadError(f"{file}: is no chat template ({one_line(str(error), 160)})") from None
    template = read_object(file).get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict)]
        template = {item.get("name"): item.get("template") for item in named}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
