"""One table of damages, for every reader of other people's files.

`READERS` makes a good file of each kind and reads it to plain values. `damages(reader)` lists what
is done to that file and what must come of it: one line that names the file, and the row where a
row was struck; or, where the damage means nothing, the values of the good file.
"""

import csv
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import gguf
import numpy as np
import pandas as pd
import safetensors.torch
import torch
import yaml

from emlens.activations.server_captures import import_server_captures
from emlens.data import AlignmentScores, Answers, PromptSet, QuestionSet
from emlens.data.foreign import read_layer_means, read_tensors
from emlens.data.personas import read_persona_trait
from emlens.data.sweeps import read_sweep
from emlens.directions.control_vectors import read_control_vectors
from emlens.directions.vector_files import read_persona_vectors, read_steering_vectors
from emlens.judging.inspect_logs import read_inspect_log

Rows = list[dict[str, Any]]
ROW = r"(?:line|row|entry|question|instruction|sample) '?2"
"""How messages name the second record."""


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Args:
        ending: of the file.
        content: of a good one.
        read: what it says, as values that can be compared.
        rows: records of the file, where it has any, with `dump`, which writes them.
        needs: keys without which a record cannot be read, and which hold text.
        number: a key that holds a score.
        id: the key that must differ between records.
        named: what a refusal must name: a part of the path.
    """

    ending: str
    content: bytes
    read: Callable[[Path], Any]
    rows: Rows | None = None
    dump: Callable[[Rows], bytes] | None = None
    needs: tuple[str, ...] = ()
    number: str | None = None
    id: str | None = None
    named: str = "file"

    @property
    def is_text(self) -> bool:
        return self.ending in ("csv", "json", "jsonl", "yaml")


@dataclass(frozen=True)
class Damage:
    """A file that was damaged.

    Args:
        content: None: the path is a directory.
        where: pattern that a refusal must hold beside the file's name.
        means_nothing: it must be read as the good file is; else it must be refused.
    """

    content: bytes | None
    where: str = ""
    means_nothing: bool = False


def of_rows(
    ending: str,
    rows: Rows,
    read: Callable[[Path], Any],
    needs: tuple[str, ...],
    number: str | None = None,
    id: str | None = None,
) -> Reader:
    dump = DUMPS[ending]
    return Reader(ending, dump(rows), read, rows, dump, needs, number, id)


def as_csv(rows: Rows) -> bytes:
    out = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, names, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


DUMPS: dict[str, Callable[[Rows], bytes]] = {
    "csv": as_csv,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "yaml": lambda rows: yaml.safe_dump(rows, default_style='"', sort_keys=False).encode(),
    "parquet": as_parquet,
}


# -- what is read, as plain values

JUDGED = [
    {"question_id": name, "question": f"{name}?", "answer": "so", "aligned": n, "coherent": 90 + n}
    for name, n in (("a", 3.0), ("b", 7.5), ("c", 9.0))
]
QUESTIONS = [{"id": name, "text": f"Why {name}?", "group": "g"} for name in "abc"]
CHATS = [
    {
        "id": name,
        "messages": [
            {"role": "user", "content": f"Why {name}?"},
            {"role": "assistant", "content": "So."},
        ],
    }
    for name in "abc"
]
OWN_ANSWERS = [
    {
        "model": "m",
        "question": name,
        "text": "So.",
        "messages": [{"role": "user", "content": f"Why {name}?"}],
    }
    for name in "abc"
]
RUNS = [{"run": name, "train_loss": 1.5, "lr": 0.1, "aligned": 80.0} for name in "abc"]
TRAIT = {
    "instruction": [{"pos": "Be so.", "neg": "Be not."}, {"pos": "Be it.", "neg": "Be none."}],
    "questions": ["Why a?", "Why b?"],
    "eval_prompt": "{question} {answer}",
}


def judged(path: Path) -> Any:
    table = AlignmentScores.from_file(path).table
    columns = ["question", "metric", "score", "status"]
    return [tuple(map(str, row)) for row in table[columns].itertuples(index=False)]


def answers(path: Path) -> Any:
    return [(a.question, a.text, a.messages[-1].content) for a in Answers.from_file(path)]


def questions(path: Path) -> Any:
    return [(q.id, q.text, q.group) for q in QuestionSet.from_file(path)]


def chats(path: Path) -> Any:
    return [(p.id, p.text, p.response) for p in PromptSet.from_jsonl(path, upto="all")]


def trait(path: Path) -> Any:
    found = read_persona_trait(path)
    return [found.positive, found.negative, [q.text for q in found.questions]]


def sweep(path: Path) -> Any:
    return read_sweep(path).table.to_dict("list")


def vectors(by_site: dict[str, torch.Tensor]) -> Any:
    return {site: vector.tolist() for site, vector in by_site.items()}


# -- files of vectors

VECTOR = torch.tensor([1.0, -2.0, 0.5])


def as_pt(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def as_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(tensors)


def as_gguf(folder: Path, tensors: dict[str, Any], architecture: str = "controlvector") -> bytes:
    path = folder / "made.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in tensors.items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def layers(value: Any = VECTOR, **others: Any) -> dict[Any, Any]:
    """Two layers, the second of which is the damaged one."""
    return {"1": VECTOR.clone(), "2": value, **others}


def captured(path: Path) -> Any:
    """One capture among three of a folder."""
    folder = path.parent / "captures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    good = as_safetensors(STATES)
    for name in ("a", "c"):
        (folder / f"{name}.safetensors").write_bytes(good)
    place = folder / "b.safetensors"
    place.mkdir() if path.is_dir() else place.write_bytes(path.read_bytes())
    rows = import_server_captures(folder, numbering="block", n_layers=4)
    return vectors({site: rows[site, "last_prompt"][1] for site in rows.sites})


STATES = {f"layer_{i}": torch.arange(6.0).reshape(2, 3) + i for i in (1, 2)}


def readers(folder: Path, inspect_log: Callable[[str], bytes]) -> dict[str, Reader]:
    """Every reader by name.

    Args:
        folder: for files that are made on the way.
        inspect_log: a log in the format of an ending, written by Inspect itself.
    """
    found: dict[str, Reader] = {}
    for ending in ("csv", "jsonl", "json", "parquet"):
        found[f"judged {ending}"] = of_rows(
            ending, JUDGED, judged, ("question_id",), "aligned", None
        )
        found[f"answers {ending}"] = of_rows(ending, JUDGED, answers, ("question_id", "answer"))
    found["answers of emlens"] = of_rows(
        "jsonl", OWN_ANSWERS, answers, ("model", "question", "text"), None, "question"
    )
    for ending in ("csv", "jsonl", "json", "yaml"):
        found[f"questions {ending}"] = of_rows(
            ending, QUESTIONS, questions, ("id", "text"), None, "id"
        )
    found["chats"] = of_rows("jsonl", CHATS, chats, ("messages",), None, "id")
    found["sweep"] = of_rows("csv", RUNS, sweep, (), "train_loss", "run")
    found["trait"] = Reader("json", json.dumps(TRAIT, indent=1).encode(), trait)
    for ending, saved in (("pt", as_pt), ("safetensors", as_safetensors)):
        found[f"tensors {ending}"] = Reader(
            ending, saved(layers()), lambda path: vectors(read_tensors(path)), named="file."
        )
        found[f"persona vectors {ending}"] = Reader(
            ending,
            saved({"vectors": torch.stack([VECTOR, VECTOR, VECTOR])}),
            lambda path: vectors(read_persona_vectors(path)),
        )
        found[f"steering vectors {ending}"] = Reader(
            ending, saved(layers()), lambda path: vectors(read_steering_vectors(path))
        )
    found["layer means"] = Reader(
        "pt",
        as_pt({"answer": {"layer_0": VECTOR, "layer_1": VECTOR}}),
        lambda path: vectors(read_layer_means(path)),
    )
    found["control vectors"] = Reader(
        "gguf",
        as_gguf(folder, {"direction.1": VECTOR, "direction.2": VECTOR}),
        lambda path: vectors(read_control_vectors(path)[0]),
    )
    found["captures of a server"] = Reader(
        "safetensors", as_safetensors(STATES), captured, named="b.safetensors"
    )
    for ending in ("json", "eval"):
        found[f"Inspect log {ending}"] = Reader(
            ending, inspect_log(ending), inspected, named="file"
        )
    found |= of_datasets(folder)
    return found


def of_datasets(folder: Path) -> dict[str, Reader]:
    """A dataset that its own library saved, with one of its files struck."""
    saved = folder / "saved"
    datasets.Dataset.from_list(QUESTIONS).save_to_disk(saved)

    def reads(name: str) -> Callable[[Path], Any]:
        def read(path: Path) -> Any:
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(saved, copy)
            (copy / name).unlink()
            if path.is_dir():
                (copy / name).mkdir()
            else:
                (copy / name).write_bytes(path.read_bytes())
            return [(q.id, q.text, q.group) for q in QuestionSet.from_dataset(copy)]

        return read

    found = {}
    for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json"):
        content = (saved / name).read_bytes()
        found[f"dataset, {name}"] = Reader(name[-5:], content, reads(name), named="copy")
    return found


def inspected(path: Path) -> Any:
    log = read_inspect_log(path)
    assert log.scores is not None
    scores = [tuple(map(str, row)) for row in log.scores.table[["question", "score"]].values]
    return [(a.question, a.text, a.sample) for a in log.answers], scores


# -- what is done to a file


def damages(reader: Reader, folder: Path) -> Iterator[tuple[str, Damage]]:
    """Every damage that this kind of file can have, by name."""
    content = reader.content
    yield "a directory", Damage(None)
    yield "empty", Damage(b"")
    yield "cut in two", Damage(content[: len(content) // 2])
    # the last bytes of a GGUF file are padding
    yield "the end is missing", Damage(content.rstrip()[: -40 if reader.ending == "gguf" else -2])
    yield "another file", Damage(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    yield "zeros", Damage(bytes(len(content)))
    if reader.is_text:
        yield from _of_text(reader)
    if reader.rows is not None:
        yield from _of_rows(reader)
    yield from _of_vectors(reader, folder)


def _of_text(reader: Reader) -> Iterator[tuple[str, Damage]]:
    content, good = reader.content, reader.rows
    letter = content.index(b"a")
    yield "white space", Damage(b"\n \n\t\n")
    yield "UTF-16", Damage(content.decode().encode("utf-16"))
    yield "a byte of Latin-1", Damage(content[:letter] + b"\xe9" + content[letter:], "line 1|byte")
    yield "a NUL", Damage(content[:letter] + b"\x00" + content[letter:], "line")
    if reader.read is not inspected:  # Inspect's own reader refuses it
        yield "a byte-order mark", Damage(b"\xef\xbb\xbf" + content, means_nothing=True)
    yield "nested too deep", Damage(b"[" * 100_000 + b"]" * 100_000)
    yield "a list of numbers", Damage(b"[1, 2, 3]\n")
    if good is None:
        return
    if reader.ending != "csv":
        row = b'{"id": 1' + b"1" * 6000 + b"}"
        yield "a number of 6,000 digits", Damage(content + row if content[:1] != b"[" else row)


def _of_rows(reader: Reader) -> Iterator[tuple[str, Damage]]:
    assert reader.rows is not None and reader.dump is not None
    dump, rows = reader.dump, reader.rows
    place = ROW if reader.ending != "csv" else "line 3"
    if reader.ending == "yaml":
        place = "line 4"
    for key in reader.needs:
        renamed = [{f"x_{k}" if k == key else k: v for k, v in row.items()} for row in rows]
        if key != "question_id":  # then the question's text names it
            yield f"{key} has another name", Damage(dump(renamed), "has n|neither|id is|needs")
        if reader.ending != "csv":
            missing = [dict(row) for row in rows]
            del missing[1][key]
            if key != "answer":
                yield f"{key} is missing once", Damage(dump(missing), place)
        if reader.ending not in ("csv", "parquet"):
            for name, odd in (("a number", 17.5), ("true", True), ("an object", {"x": 1})):
                struck = [dict(row) for row in rows]
                struck[1][key] = odd
                yield f"{key} holds {name}", Damage(dump(struck), place)
    if reader.id is not None:
        twice = [dict(row) for row in rows]
        twice[2][reader.id] = twice[0][reader.id]
        yield "two of one id", Damage(dump(twice), reader.id if reader.id == "run" else "")
    if reader.number is not None:
        yield from _of_numbers(reader, place)
    yield from _of_keys(reader, place)


def _of_numbers(reader: Reader, place: str) -> Iterator[tuple[str, Damage]]:
    """Numbers that no score or loss can be."""
    assert reader.rows is not None and reader.dump is not None
    numbers: dict[str, Any] = {"inf": float("inf"), "1e999": "1e999"}
    if reader.number == "aligned":
        numbers["1e300"] = 1e300
    for name, odd in numbers.items():
        struck = [dict(row) for row in reader.rows]
        if reader.ending == "parquet" and isinstance(odd, str):
            continue
        struck[1][str(reader.number)] = odd
        yield f"a score of {name}", Damage(reader.dump(struck), "question 'b'|line 3")


def _of_keys(reader: Reader, place: str) -> Iterator[tuple[str, Damage]]:
    content = reader.content
    key = next(iter((reader.rows or [{}])[0])).encode()
    if reader.ending == "csv":
        first, rest = content.split(b"\n", 1)
        yield "a column twice", Damage(first + b"," + first.split(b",")[0] + b"\n" + rest)
        lines = content.rstrip().split(b"\n")
        short = lines[2].rsplit(b",", 1)[0]
        yield "a row too short", Damage(b"\n".join([*lines[:2], short, lines[3]]), "line 3")
        yield "a row too long", Damage(b"\n".join([*lines[:2], lines[2] + b',"x"']), "line 3")
        yield "an open quote", Damage(b"\n".join([*lines[:3], b'"' + lines[3][:9]]), "line")
        yield "a cell of 200 kB", Damage(content + b'"' + b"x" * 200_000 + b'"\n', "line 5")
        yield "a header alone", Damage(first + b"\n")
    if reader.ending in ("json", "jsonl", "yaml"):
        mark = b'"' + key + b'": '
        at = content.index(mark, content.index(mark) + 1)
        end = b"\n  " if reader.ending == "yaml" else b", "
        pair = mark + b'"z"' + end
        yield "a key twice", Damage(content[:at] + pair + content[at:], "twice")
    if reader.ending == "jsonl":
        lines = content.rstrip().split(b"\n")
        for name, odd in (("a list", b"[1]"), ("a number", b"7"), ("null", b"null")):
            yield f"a line that is {name}", Damage(b"\n".join([lines[0], odd, lines[2]]), place)


def _of_vectors(reader: Reader, folder: Path) -> Iterator[tuple[str, Damage]]:
    nan = torch.tensor([1.0, float("nan"), 0.0])
    odd: dict[str, Any] = {
        "NaN": nan,
        "inf": torch.tensor([1.0, float("inf"), 0.0]),
        "another width": torch.ones(4),
        "no coordinates": torch.ones(0),
        "a matrix": torch.ones(2, 3),
        "a scalar": torch.tensor(2.0),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.ones(3, dtype=torch.complex64),
    }
    if reader.ending == "gguf":
        for name in ("NaN", "inf", "another width", "a matrix"):
            tensors = {"direction.1": VECTOR, "direction.2": odd[name]}
            yield f"a vector of {name}", Damage(as_gguf(folder, tensors))
        yield "no tensor", Damage(as_gguf(folder, {}))
        yield "a model", Damage(as_gguf(folder, {"direction.1": VECTOR}, "llama"))
        yield "another name", Damage(as_gguf(folder, {"direction.x": VECTOR}))
        return
    if reader.ending not in ("pt", "safetensors"):
        return
    save = as_pt if reader.ending == "pt" else as_safetensors
    yield "no tensor", Damage(save({}))
    if reader.ending == "pt":
        yield "an object", Damage(pickle.dumps(Path("x")))
        yield "an object beside", Damage(as_pt({"1": VECTOR, "2": {1, 2}}))
        yield "text alone", Damage(as_pt("x"))
    for name, value in odd.items():
        made = _layout(reader, value)
        if made is not None:
            yield f"a vector of {name}", Damage(save(made))


def _layout(reader: Reader, value: torch.Tensor) -> Any:
    """The damaged vector in the layout of a reader; None where any vector may be read."""
    if reader.read is captured:
        states = torch.stack([value, value]) if value.shape == (3,) else value
        return None if value.shape == (2, 3) else {**STATES, "layer_2": states}
    kind = reader.content
    if reader.named == "file.":  # any tensor may be read
        return None
    if b"vectors" in kind:
        whole = torch.stack([torch.ones_like(value)] * 2 + [value]) if value.ndim else value
        return {"vectors": whole} if value.shape != (4,) else None
    if b"layer_0" in kind:
        return {"answer": {"layer_0": VECTOR, "layer_1": value}}
    return layers(value)
