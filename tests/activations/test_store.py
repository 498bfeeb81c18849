import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from emlens.activations import (
    Activations,
    ActivationStore,
    CaptureSpec,
    batch_layout,
    capture,
    store as store_module,
)
from emlens.activations.capture_job import CaptureJob
from emlens.activations.capturing import plan_capture
from emlens.activations.shards import header_sha256
from emlens.foundation import InputError, IntegrityError, UnknownNameError
from emlens.foundation.provenance import hash_json
from emlens.models import load_model

SPEC = CaptureSpec(
    positions=["last_prompt", "mean_response", "all"], batch_tokens=45, layers=[0, 2]
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(batch_layout, "SHARD_ROWS", 2)


def same(a, b):
    """Bit for bit, at every site and position, with ids, groups and tokens."""
    assert (a.ids, a.groups, a.sites, a.positions) == (b.ids, b.groups, b.sites, b.positions)
    for site in a.sites:
        for position in a.pooled_positions:
            if not torch.equal(a[site, position], b[site, position]):
                return False
        x, y = a.tokens(site), b.tokens(site)
        if not all(
            torch.equal(*pair)
            for pair in ((x.values, y.values), (x.offsets, y.offsets), (x.token_ids, y.token_ids))
        ):
            return False
    return True


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def store(model, prompts, tmp_path):
    capture(model, prompts, store=tmp_path / "store", spec=SPEC, progress=False)
    return tmp_path / "store"


def test_weights_changed_in_memory_make_the_store_refuse(files, prompts, tmp_path):
    model = load_model(files / "instruct")
    weight = model.module.model.layers[0].mlp.down_proj.weight
    store = tmp_path / "store"
    job = plan_capture({"m": model}, prompts, SPEC, stores={"m": store})
    kept = weight.data.clone()
    with torch.no_grad():
        weight[3] = 0  # which torch counts
    with pytest.raises(IntegrityError, match="was begun with other weights: those of the model"):
        job.run(job.units[0], model)
    weight.data.copy_(kept)
    captured = capture(model, prompts, store=store, spec=SPEC, progress=False)
    weight.data += 0.5  # which it does not
    with pytest.raises(IntegrityError, match=r"in memory have changed since.*pass an empty direct"):
        capture(model, prompts, store=store, spec=SPEC, progress=False)
    changed = capture(model, prompts, spec=SPEC, progress=False)
    assert not same(captured, changed)  # what would have come back is not what the model computes
    weight.data.copy_(kept)
    assert same(capture(model, prompts, store=store, spec=SPEC, progress=False), captured)
    with pytest.raises(IntegrityError, match="was begun with other weights"):
        opened = CaptureJob.open({"m": store})
        weight.data += 0.5
        opened.run(opened.units[0], model)


def test_a_store_holds_what_memory_holds(model, prompts, store):
    memory = capture(model, prompts, spec=SPEC, progress=False)
    opened = ActivationStore.open(store)
    assert same(opened, memory) and len(list(store.glob("shard-*.safetensors"))) > 2
    provenance = json.loads(json.dumps(opened.provenance))
    # only a store is gone on with later, so only a store records it
    assert provenance.pop("weights_in_memory") == model.weights_fingerprint()
    assert provenance == json.loads(json.dumps(memory.provenance))
    chosen = opened.select(["q4", "q0"])
    assert torch.equal(
        chosen["resid_post.0", "last_prompt"], memory["resid_post.0", "last_prompt"][[4, 0]]
    )


@pytest.mark.parametrize("block", [1, 200, 700])
def test_reading_in_blocks_gives_the_same_rows(model, prompts, store, monkeypatch, block):
    monkeypatch.setattr(store_module, "_BLOCK", block)
    monkeypatch.setattr(store_module, "_PIECE", 1)
    assert same(ActivationStore.open(store), capture(model, prompts, spec=SPEC, progress=False))


def test_saving_and_opening_gives_the_same_bits(model, prompts, tmp_path):
    half = CaptureSpec(dtype=torch.bfloat16)
    for name, spec in (("pooled", CaptureSpec()), ("half", half), ("tokens", SPEC)):
        acts = capture(model, prompts, spec=spec)
        opened = ActivationStore.open(acts.save(tmp_path / name))
        for site in acts.sites:
            for position in acts.pooled_positions:
                assert torch.equal(opened[site, position], acts[site, position])
                assert opened[site, position].dtype == acts[site, position].dtype
    assert same(opened, acts)
    again = ActivationStore.open(opened.save(tmp_path / "again"))
    assert same(again, acts)
    with pytest.raises(IntegrityError, match="already holds a store; pass an empty directory"):
        acts.save(tmp_path / "tokens")


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    stack = torch.arange(24.0).view(2, 3, 4)
    acts = Activations(
        {("resid_post.0", "last"): stack[0], ("resid_post.1", "last"): stack[1].T.contiguous().T},
        ids=["a", "b", "c"],
        groups=[""] * 3,
        sites=["resid_post.0", "resid_post.1"],
        positions=["last"],
        provenance={},
    )
    assert torch.equal(ActivationStore.open(acts.save(tmp_path / "s")).stacked(), stack)


def test_chunks_are_the_rows_shard_by_shard(model, prompts, store, unchecked):
    opened = ActivationStore.open(store)
    chunks = list(opened.chunks("resid_post.2", "mean_response"))
    assert len(chunks) == opened.shards > 2
    assert sorted(name for ids, _ in chunks for name in ids) == sorted(opened.ids)
    for ids, values in chunks:
        assert torch.equal(values, opened.select(ids)["resid_post.2", "mean_response"])
        values.zero_()  # a copy: the store stays as it was
    assert opened.damage() == []
    with pytest.raises(
        UnknownNameError, match=r"hold positions \['last_prompt', 'mean_response'\]"
    ):
        next(opened.chunks("resid_post.2"))


def test_what_is_read_can_be_changed_without_harm(store):
    opened = ActivationStore.open(store)
    before = opened["resid_post.0", "last_prompt"].clone()
    opened["resid_post.0", "last_prompt"].zero_()
    assert torch.equal(opened["resid_post.0", "last_prompt"], before) and opened.damage() == []


def test_only_open_formats(store):
    assert {path.suffix for path in store.iterdir()} == {".safetensors", ".json"}
    for path in store.glob("*.json"):
        json.loads(path.read_text())
    for path in store.glob("*.safetensors"):
        load_file(path)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_an_interrupted_capture_goes_on_and_gives_the_same_bytes(
    model, prompts, store, tmp_path, monkeypatch, after
):
    target, passes = tmp_path / "resumed", []
    run = type(model).run

    def dies(self, *args, **kwargs):
        if len(passes) == after:
            raise KeyboardInterrupt
        passes.append(1)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "run", dies)
    with pytest.raises(KeyboardInterrupt):
        capture(model, prompts, store=target, spec=SPEC, progress=False)
    with pytest.raises(
        IntegrityError, match="the capture into this store was not finished; run it again to resume"
    ):
        ActivationStore.open(target)
    finished = len(list(target.glob("shard-*.json")))
    (target / ".shard-00002.safetensors.x.part").write_bytes(b"left by a kill")
    monkeypatch.setattr(
        type(model), "run", lambda self, *a, **k: passes.append(1) or run(self, *a, **k)
    )
    before = len(passes)
    capture(model, prompts, store=target, spec=SPEC, progress=False)
    assert bytes_of(target) == bytes_of(store)  # what a killed process left is gone, too
    if finished:
        shards = json.loads((store / "manifest.json").read_text())["provenance"]["batches"]
        assert len(passes) - before < shards  # finished shards were not run again


def test_a_kill_before_the_plan_is_there(model, prompts, store, tmp_path):
    target = tmp_path / "early"
    target.mkdir()
    (target / ".plan.json.x.part").write_text("{")
    capture(model, prompts, store=target, spec=SPEC, progress=False)
    assert same(ActivationStore.open(target), ActivationStore.open(store))


def test_a_finished_store_is_not_captured_again(model, prompts, store, monkeypatch):
    monkeypatch.setattr(type(model), "run", lambda *a, **k: pytest.fail("a pass ran"))
    before = bytes_of(store)
    capture(model, prompts, store=store, spec=SPEC, progress=False)
    assert bytes_of(store) == before


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [0]},
        {"positions": ["last_prompt"]},
        {"batch_tokens": 60},
        {"dtype": torch.bfloat16},
    ],
)
def test_another_plan_is_refused(model, prompts, store, change):
    before = bytes_of(store)
    with pytest.raises(
        IntegrityError,
        match="holds a store begun for another model, prompt set, site, position or library",
    ):
        capture(model, prompts, store=store, spec=replace(SPEC, **change), progress=False)
    assert bytes_of(store) == before


def test_another_model_or_prompt_set_is_refused(family, prompts, store):
    for model, asked in (
        (family["one"], prompts),
        (family["full"], prompts),
        (family.instruct, prompts[:5]),
    ):
        with pytest.raises(IntegrityError, match="begun for another model"):
            capture(model, asked, store=store, spec=SPEC, progress=False)


def test_a_store_of_another_format_is_not_written_over(model, prompts, store):
    plan = json.loads((store / "plan.json").read_text())
    (store / "plan.json").write_text(json.dumps({**plan, "format": 1}))
    for path in store.glob("*.json"):
        if path.name != "plan.json":
            path.write_text("{}")
    before = bytes_of(store)
    with pytest.raises(
        IntegrityError,
        match=(
            "holds a store of another format than 3, which this version writes;"
            " pass an empty directory"
        ),
    ):
        capture(model, prompts, store=store, spec=SPEC, progress=False)
    assert bytes_of(store) == before


def test_directories_that_hold_no_store(model, prompts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(
        IntegrityError, match="mine: is not empty and holds no store; pass an empty directory"
    ):
        capture(model, prompts, store=tmp_path / "mine")
    with pytest.raises(InputError, match=r"thesis\.txt: is a file; pass a directory for the store"):
        capture(model, prompts, store=tmp_path / "mine" / "thesis.txt")
    acts = capture(model, prompts, progress=False)
    with pytest.raises(
        IntegrityError, match="mine: is not empty and holds no store; pass an empty directory"
    ):
        acts.save(tmp_path / "mine")
    with pytest.raises(InputError, match=r"thesis\.txt: is a file; pass a directory for the store"):
        acts.save(tmp_path / "mine" / "thesis.txt")
    for path in (tmp_path / "mine", tmp_path / "absent"):
        with pytest.raises(InputError, match="holds no activation store; pass a directory that"):
            ActivationStore.open(path)


def read_all(directory):
    acts = ActivationStore.open(directory)
    for site in acts.sites:
        for position in acts.pooled_positions:
            acts[site, position]
        acts.tokens(site)
    return acts


def test_a_damaged_store_is_restored_by_capturing_again(model, prompts, store, unchecked):
    before = bytes_of(store)
    first, second, third = sorted(store.glob("shard-*.safetensors"))[:3]
    first.unlink()
    with pytest.raises(
        IntegrityError,
        match=(
            r"shard-00000\.safetensors: is missing; capture again into this directory to restore it"
        ),
    ):
        read_all(store)
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        IntegrityError,
        match=(
            r"shard-00000\.safetensors: does not have the bytes its manifest recorded;"
            r" capture again"
        ),
    ):
        read_all(store)
    second.with_suffix(".json").write_text("{")
    third.with_suffix(".json").write_text("[]")
    capture(model, prompts, store=store, spec=SPEC, progress=False)
    assert bytes_of(store) == before


def signed(record):
    """A record whose hash fits what it says now."""
    body = {key: value for key, value in record.items() if key != "sha256"}
    return {**body, "sha256": hash_json(body)}


def test_manifests_that_do_not_fit(store):
    path = store / "manifest.json"
    whole = json.loads(path.read_text())

    def refused(change, match):
        path.write_text(json.dumps(change(json.loads(json.dumps(whole)))))
        with pytest.raises(IntegrityError, match=match):
            ActivationStore.open(store)

    refused(
        lambda m: signed({**m, "format": 1}),
        "is not a manifest of store format 3, which this version reads",
    )
    refused(lambda m: [], "manifest.json: was changed after it was written")
    refused(
        lambda m: {**m, "ids": m["ids"][::-1]}, "manifest.json: was changed after it was written"
    )
    refused(
        lambda m: {**m, "shards": m["shards"][:-1]},
        "manifest.json: was changed after it was written",
    )
    path.write_text("{")
    with pytest.raises(
        IntegrityError,
        match=(
            "manifest.json, line 1: not valid JSON: .*; capture again into this directory to"
            " restore it"
        ),
    ):
        ActivationStore.open(store)
    path.write_text(json.dumps(whole))
    read_all(store)


def test_a_shard_without_its_tensor(store, unchecked):
    path, manifest = store / "shard-00000.safetensors", store / "manifest.json"
    tensors = load_file(path)
    tensors["other"] = tensors.pop("resid_post.0@last_prompt")
    save_file(tensors, path)
    record = json.loads(manifest.read_text())
    record["shards"][0] |= {"header_sha256": header_sha256(path), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(signed(record)))
    with pytest.raises(
        IntegrityError,
        match=r"shard-00000\.safetensors: holds no tensor 'resid_post.0@last_prompt'",
    ):
        read_all(store)
