"""Small files and replies that are made to cost gigabytes or hours: is each refused, within a
second and 200 MB?

Every bomb is one of the kinds below with seeded sizes and fillings. It is read by the function that
the library reads such a file with. Memory is the process's peak above what it held before the bomb
(`VmHWM`, reset before each); time is that of the processor, of this process and the small ones that
it starts. A bomb that is read, or refused
by anything but one line that names file or field, is a failure.
"""

import gzip
import io
import json
import os
import random
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.records import record
from emlens.activations.npz import read_npz
from emlens.data import AlignmentScores, PromptSet, QuestionSet
from emlens.data.configuration import read_file
from emlens.data.foreign import read_tensors
from emlens.data.template_limits import require_bounded
from emlens.directions.control_vectors import read_control_vectors
from emlens.foundation.errors import EmlensError
from emlens.foundation.files import read_json
from emlens.foundation.free_memory import return_free_memory
from emlens.judging.inspect_logs import read_inspect_log
from emlens.judging.keys import Key
from emlens.judging.replies import Fault
from emlens.judging.transport import json_of, read_body
from emlens.models.adapter_files import AdapterFiles
from emlens.models.checkpoint_files import SavedTensors

BOMBS = 5000
MOST_SECONDS, MOST_BYTES = 1.0, 200e6
MEGABYTES = (70, 200, 450, 900)
"""What archives unpack to."""
Pick = random.Random


@dataclass(frozen=True)
class Kind:
    """A kind of bomb.

    Args:
        ending: of its file.
        make: the content.
        read: what refuses it; it is given the path.
    """

    ending: str
    make: Callable[[Pick], bytes]
    read: Callable[[Path], Any]


# ---- replies of a server


class _Response:
    """What the transport reads of a response: headers, and a body that comes in parts."""

    def __init__(self, encoding: str, body: bytes):
        self.headers = {"content-encoding": encoding}
        self._body = body

    async def aiter_raw(self) -> Any:
        for start in range(0, len(self._body), 2**16):
            yield self._body[start : start + 2**16]


def _reply(encoding: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        body = _run(read_body(_Response(encoding, path.read_bytes())))
        return json_of(body, Key("sk-0123456789abcdef", "api_key"))

    return read


def _run(work: Any) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits for something")


@lru_cache
def _packed(megabytes: int) -> bytes:
    """A gzip stream of spaces; every megabyte is packed as the first one is."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + piece * megabytes + packer.flush()


def packed(pick: Pick) -> bytes:
    """Hundreds of megabytes in some hundred kilobytes."""
    return _packed(pick.randrange(100, 900))


def twice_packed(pick: Pick) -> bytes:
    return gzip.compress(packed(pick), 1)


def deep(pick: Pick) -> bytes:
    opening, closing = pick.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"b":[', b"]}]")])
    count = pick.randrange(5_000, 200_000)
    return opening * count + b"1" + closing * count


def many_containers(pick: Pick) -> bytes:
    return b"[" + pick.choice([b"[],", b"{},", b"[[]],"]) * pick.randrange(2_000_000, 3_000_000)


# ---- configurations


def merges(pick: Pick) -> bytes:
    width = pick.randrange(4, 12)
    lines = ["a0: &a0 {k: 1, l: 2}"]
    for i in range(1, pick.randrange(12, 30)):
        names = ", ".join([f"*a{i - 1}"] * width)
        value = pick.choice([f"{{<<: [{names}]}}", f"{{<<: [{names}], z{i}: {i}}}"])
        lines.append(f"a{i}: &a{i} {value}")
    return "\n".join(lines).encode()


def laughs(pick: Pick) -> bytes:
    width = pick.randrange(3, 10)
    lines = ["a0: &a0 [x]"]
    for i in range(1, pick.randrange(20, 60)):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]")
    return "\n".join(lines).encode()


def deep_yaml(pick: Pick) -> bytes:
    count = pick.randrange(500, 60_000)
    return pick.choice([b"[" * count, b"- " * count + b"1", b"{a: " * count])


def long_number(pick: Pick) -> bytes:
    count = pick.randrange(10_000, 500_000)
    return b"a: 1" + pick.choice([b"0", b":1", b"_1"]) * count


def many_nodes(pick: Pick) -> bytes:
    return b"a: [" + b"1, " * pick.randrange(150_000, 2_000_000) + b"1]"


# ---- lines and tables


def long_line(pick: Pick) -> bytes:
    size = pick.randrange(17 * 2**20, 24 * 2**20)
    return b'{"messages": "' + pick.choice([b"x", b"\\\\", b" "]) * size + b'"}\n'


def brackets_in_a_line(pick: Pick) -> bytes:
    return b'{"messages": [' + b"[]," * pick.randrange(300_000, 3_000_000) + b"1]}\n"


def sparse_table(pick: Pick) -> bytes:
    """Rows that share no column: the table is the square of the file."""
    rows = pick.randrange(3_000, 9_000)
    lines = [json.dumps({"question": "q", f"c{i}": 1, "aligned": 3}) for i in range(rows)]
    return "\n".join(lines).encode()


def long_cell(pick: Pick) -> bytes:
    return b'question,aligned\n"' + b"x" * pick.randrange(140_000, 8_000_000) + b'",1\n'


def parquet(pick: Pick) -> bytes:
    """One value, millions of times."""
    rows = pick.randrange(3_000_000, 6_000_000)
    out = io.BytesIO()
    value = pa.repeat(pa.scalar("q"), 1).dictionary_encode()
    places = pa.repeat(pa.scalar(0, pa.int8()), rows)
    column = pa.DictionaryArray.from_arrays(places, value.dictionary)
    pq.write_table(pa.table({"question": column, "aligned": pa.repeat(1.0, rows)}), out)
    return out.getvalue()


# ---- archives and tensors


@lru_cache
def _zip(name: str, megabytes: int) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        for _ in range(megabytes):
            file.write(bytes(2**20))
    return out.getvalue()


def npz(pick: Pick) -> bytes:
    return _zip("emlens.npy", pick.choice(MEGABYTES))


def inspect_log(pick: Pick) -> bytes:
    return _zip("header.json", pick.choice(MEGABYTES))


def pickled(pick: Pick) -> bytes:
    return _zip("archive/data.pkl", pick.choice(MEGABYTES))


def stretched(pick: Pick) -> bytes:
    """A view of one number that stands for billions."""
    out = io.BytesIO()
    torch.save({"1": torch.ones(1).expand(pick.randrange(10**9, 10**12))}, out)
    return out.getvalue()


def shared_lists(pick: Pick) -> bytes:
    """Lists in lists that are one list: every path leads to another entry."""
    value: Any = [torch.ones(1)]
    for _ in range(12):
        value = [value] * pick.randrange(6, 12)
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def tensor_header(pick: Pick) -> bytes:
    """A length that no file has, a header without end, or a hundred thousand empty tensors."""
    kind = pick.randrange(3)
    if kind == 0:
        return struct.pack("<Q", pick.randrange(2**32, 2**63)) + b"{}"
    if kind == 1:
        header = b"{" + b" " * pick.randrange(17 * 2**20, 24 * 2**20) + b"}"
        return struct.pack("<Q", len(header)) + header
    entry = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    entries = [entry.format(i) for i in range(pick.randrange(110_000, 160_000))]
    header = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(header)) + header


def gguf(pick: Pick) -> bytes:
    """Counts that no file has, or an array of small numbers that becomes objects."""
    kind = pick.randrange(4)
    head = b"GGUF" + struct.pack("<I", 3)
    key = b"general.architecture"
    name = struct.pack("<Q", len(key)) + key
    if kind == 0:
        return head + struct.pack("<QQ", pick.randrange(2**30, 2**62), 0) + bytes(4096)
    if kind == 1:
        return head + struct.pack("<QQ", 0, pick.randrange(2**30, 2**62)) + bytes(4096)
    if kind == 2:
        return (
            head
            + struct.pack("<QQ", 0, 1)
            + name
            + struct.pack("<IIQ", 9, 0, pick.randrange(2**40, 2**60))
        )
    count = pick.randrange(1_000_000, 4_000_000)
    return head + struct.pack("<QQ", 0, 1) + name + struct.pack("<IIQ", 9, 0, count) + bytes(count)


# ---- programs


def pattern(pick: Pick) -> bytes:
    inner = pick.choice(["(.*)*", "(.+)+", "(\\w*)*", "([a-z_.0-9]+)*", "(.|[a-z])*"])
    modules = inner * pick.randrange(2, 5) + pick.choice(["X", "!", "Q$"])
    config: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    where = pick.choice(["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
    config |= {"target_modules": ["q_proj"]}
    config[where] = modules if where.endswith("modules") else {modules: 4}
    return json.dumps(config).encode()


def template(pick: Pick) -> bytes:
    n = pick.randrange(20_000, 99_999)
    loops = "".join(f"{{% for i{d} in range({n}) %}}" for d in range(pick.randrange(2, 4)))
    ends = "{% endfor %}" * loops.count("{% for")
    doubling = (
        "{% set ns = namespace(t='ab') %}{% for m in messages %}"
        "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
    )
    return pick.choice(
        [
            f"{loops}{{{{ 'x' }}}}{ends}",
            f"{loops}{ends}",
            f"{{{{ 'x' * {n} ** 2 }}}}",
            f"{{{{ 9 ** ({n} ** 2) }}}}",
            f"{{{{ 'x' | center({n} * 9999) }}}}",
            f"{{{{ 'x'.ljust({n}99999) }}}}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            f"{{{{ f({n % 90 + 30}) }}}}",
            doubling,
        ]
    ).encode()


def _adapter(path: Path) -> Any:
    home = path.parent / "adapter"
    home.mkdir(exist_ok=True)
    (home / "adapter_config.json").write_bytes(path.read_bytes())
    return AdapterFiles(home)


def _weights(path: Path) -> Any:
    return dict(SavedTensors([path]))


def _scores(path: Path) -> Any:
    return AlignmentScores.from_file(path)


KINDS: dict[str, Kind] = {
    "reply, gzip": Kind("bin", packed, _reply("gzip")),
    "reply, gzip in gzip": Kind("bin", twice_packed, _reply("gzip, gzip")),
    "reply, gzip told as zstd": Kind("bin", packed, _reply("zstd")),
    "reply, nested": Kind("bin", deep, _reply("")),
    "reply, many objects": Kind("bin", many_containers, _reply("")),
    "YAML, merges": Kind("yaml", merges, read_file),
    "YAML, aliases": Kind("yaml", laughs, read_file),
    "YAML, nested": Kind("yaml", deep_yaml, read_file),
    "YAML, a long number": Kind("yaml", long_number, read_file),
    "YAML, many values": Kind("yaml", many_nodes, read_file),
    "JSON, nested": Kind("json", deep, QuestionSet.from_file),
    "JSON, many objects": Kind("json", many_containers, QuestionSet.from_file),
    "record, many objects": Kind("json", many_containers, read_json),
    "JSONL, a long line": Kind("jsonl", long_line, PromptSet.from_jsonl),
    "JSONL, many lists": Kind("jsonl", brackets_in_a_line, PromptSet.from_jsonl),
    "table, no shared column": Kind("jsonl", sparse_table, _scores),
    "table, a long cell": Kind("csv", long_cell, _scores),
    "Parquet, one value": Kind("parquet", parquet, _scores),
    "npz": Kind("npz", npz, read_npz),
    "Inspect log": Kind("eval", inspect_log, read_inspect_log),
    "pickle, packed": Kind("pt", pickled, read_tensors),
    "pickle, a view": Kind("pt", stretched, read_tensors),
    "pickle, shared lists": Kind("pt", shared_lists, read_tensors),
    "safetensors header": Kind("safetensors", tensor_header, read_tensors),
    "header of weights": Kind("safetensors", tensor_header, _weights),
    "GGUF counts": Kind("gguf", gguf, read_control_vectors),
    "pattern of modules": Kind("json", pattern, _adapter),
    "chat template": Kind("jinja", template, lambda path: require_bounded(path.read_text())),
}


@contextmanager
def peak_above() -> Iterator[Callable[[], int]]:
    """Bytes above what the process held, at most, since the block began (Linux)."""
    return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield lambda: max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no {name}")


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def defuse(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One bomb: what came of it, seconds and bytes."""
    kind = KINDS[name]
    path = folder / f"bomb.{kind.ending}"
    path.write_bytes(kind.make(random.Random(f"{name} {seed}")))
    with peak_above() as peak:
        started = _processor_seconds()
        outcome = "read"
        try:
            kind.read(path)
        except (EmlensError, Fault) as error:
            message = str(error)
            one_line = "\n" not in message and len(message) <= 500
            outcome = "refused" if one_line else f"not one line: {message[:200]!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        seconds = _processor_seconds() - started
    return {"outcome": outcome, "seconds": seconds, "bytes": peak(), "size": path.stat().st_size}


def measure(folder: Path, counts: Mapping[str, int]) -> dict[str, Any]:
    """`counts` bombs of each kind."""
    kinds = {}
    for name, count in counts.items():
        kinds[name] = _summary([defuse(name, seed, folder) for seed in range(count)])
    return {
        "bombs": sum(counts.values()),
        "refused": sum(kind["refused"] for kind in kinds.values()),
        "within_a_second": sum(kind["within_a_second"] for kind in kinds.values()),
        "within_200_MB": sum(kind["within_200_MB"] for kind in kinds.values()),
        "kinds": kinds,
    }


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    others = Counter(r["outcome"] for r in results if r["outcome"] != "refused")
    return {
        "bombs": len(results),
        "refused": sum(r["outcome"] == "refused" for r in results),
        "within_a_second": sum(r["seconds"] <= MOST_SECONDS for r in results),
        "within_200_MB": sum(r["bytes"] <= MOST_BYTES for r in results),
        "longest_seconds": max(r["seconds"] for r in results),
        "most_megabytes": max(r["bytes"] for r in results) / 1e6,
        "others": dict(others),
    }


def bombs_table(values: dict[str, Any]) -> str:
    """Markdown for docs/security.md."""
    lines = ["| kind | bombs | refused | slowest, s | most memory, MB |", "|---|---|---|---|---|"]
    for name, kind in values["kinds"].items():
        lines.append(
            f"| {name} | {kind['bombs']} | {kind['refused']} | {kind['longest_seconds']:.2f} |"
            f" {kind['most_megabytes']:.0f} |"
        )
    return "\n".join(lines)


def main(bombs: int = BOMBS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        each, more = divmod(bombs, len(KINDS))
        counts = {name: each + (i < more) for i, name in enumerate(KINDS)}
        values = measure(Path(folder), counts)
    print(record("bombs", [0], values))
    for name, kind in values["kinds"].items():
        print(name, kind)


if __name__ == "__main__":
    main()
