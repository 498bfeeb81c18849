"""Random damage to a store: is each seen at the first read, or without effect on what is read?"""

import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import capture_speed
from benchmarks.records import record
from emlens.activations import Activations, ActivationStore, CaptureSpec, batch_layout, capture
from emlens.foundation.errors import EmlensError

DAMAGES = 1000
KINDS = (
    "flip",
    "flip",
    "truncate",
    "missing",
    "swap shards",
    "swap shards and sidecars",
    "shard of another store",
    "edit",
    "edit manifest",
)


def damage(directory: Path, other: Path, pick: random.Random) -> tuple[str, str]:
    """One random accident: its kind, and the file that it struck."""
    files = sorted(directory.iterdir())
    shards = [
        path for path in files if path.name.startswith("shard-") and path.suffix == ".safetensors"
    ]
    kind = pick.choice(KINDS)
    path = pick.choice(files)
    if kind == "flip":
        content = bytearray(path.read_bytes())
        content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
        path.write_bytes(bytes(content))
    elif kind == "truncate":
        path.write_bytes(path.read_bytes()[: pick.randrange(path.stat().st_size)])
    elif kind == "missing":
        path.unlink()
    elif kind.startswith("swap"):
        path, second = pick.sample(shards, 2)
        _swap(path, second)
        if kind.endswith("sidecars"):
            _swap(path.with_suffix(".json"), second.with_suffix(".json"))
    elif kind == "shard of another store":
        path = pick.choice(shards)
        path.write_bytes((other / path.name).read_bytes())
    else:
        path = (
            directory / "manifest.json"
            if kind == "edit manifest"
            else pick.choice([p for p in files if p.suffix == ".json"])
        )
        written = json.loads(path.read_text())
        key = pick.choice(sorted(written))
        value = written[key]
        written[key] = pick.choice(
            [None, 3, "x", [], {}, value[::-1] if isinstance(value, list) else "y"]
        )
        path.write_text(json.dumps(written))
    return kind, path.name


def _swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def read_all(directory: Path) -> Activations:
    acts = ActivationStore.open(directory)
    for site in acts.sites:
        for position in acts.pooled_positions:
            acts[site, position]
        acts.tokens(site)
    return acts


def same(a: Activations, b: Activations) -> bool:
    if (a.ids, a.groups, a.sites, a.positions, a.provenance) != (
        b.ids,
        b.groups,
        b.sites,
        b.positions,
        b.provenance,
    ):
        return False
    for site in b.sites:
        x, y = a.tokens(site), b.tokens(site)
        if not all(
            torch.equal(getattr(x, name), getattr(y, name))
            for name in ("values", "offsets", "token_ids")
        ):
            return False
        if not all(
            torch.equal(a[site, position], b[site, position]) for position in b.pooled_positions
        ):
            return False
    return True


def measure(work: Path, count: int, seed: int = 0) -> dict[str, Any]:
    asked = capture_speed.prompts(count=12, words=200)
    rows, batch_layout.SHARD_ROWS = batch_layout.SHARD_ROWS, 3
    try:
        for name, width in (("store", 16), ("other", 16)):
            torch.manual_seed(0)
            model = capture_speed.build(layers=2, width=width, words=200)
            if name == "other":
                next(model.module.parameters()).data.mul_(2)
            capture(
                model,
                asked,
                spec=CaptureSpec(positions=["last_prompt", "all"], batch_tokens=128),
                store=work / name,
                progress=False,
            )
    finally:
        batch_layout.SHARD_ROWS = rows
    whole, pick = ActivationStore.open(work / "store"), random.Random(seed)
    tally: dict[str, Counter[str]] = {
        "seen": Counter(),
        "harmless": Counter(),
        "missed": Counter(),
        "crashed": Counter(),
    }
    for number in range(count):
        copy = shutil.copytree(work / "store", work / f"damaged-{number}")
        kind, file = damage(copy, work / "other", pick)
        try:
            verdict = "harmless" if same(read_all(copy), whole) else "missed"
        except EmlensError:
            verdict = "seen"
        except Exception as error:  # a damaged file must never end in anything else
            verdict, kind = "crashed", f"{kind} {file}: {type(error).__name__}: {error}"
        tally[verdict][kind] += 1
        shutil.rmtree(copy)
    counts = {verdict: sum(kinds.values()) for verdict, kinds in tally.items()}
    return {
        "damages": count,
        **counts,
        "by_kind": {verdict: dict(sorted(kinds.items())) for verdict, kinds in tally.items()},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), DAMAGES)
    print(f"\ndamaged stores: {found}")
    record("store_damage", [0], found)
