"""A capture as a job: units in any process and order give the bytes of one capture; cuts reach
every side.
"""

import copy
import json
import random
from dataclasses import replace
from itertools import product

import pytest
import tiny_models
import torch

from emlens.activations import (
    ActivationStore,
    CaptureSpec,
    activation_deltas,
    batch_layout,
    capture,
    capture_many,
    capture_pair,
)
from emlens.activations.capture_job import CaptureJob, CaptureUnit
from emlens.activations.capturing import plan_capture
from emlens.data import PromptSet
from emlens.foundation import InputError, IntegrityError, Span, StateError, UnknownNameError

SPEC = CaptureSpec(positions=["last_prompt", "all"], batch_tokens=45, layers=[0, 2])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(batch_layout, "SHARD_ROWS", 2)


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def odd(ids, mask):
    return torch.arange(len(ids)) % 2 == 1


def test_units_in_any_order_from_the_directories_alone_give_the_bytes_of_one_capture(
    family, prompts, tmp_path
):
    models = {"before": family.instruct, "after": family["one"]}
    positions = ["last_prompt", "mean_prompt", Span(0, 2, of="response"), "last", odd, "all"]
    capture_many(
        models,
        prompts,
        stores={n: tmp_path / f"whole-{n}" for n in models},
        progress=False,
        spec=replace(SPEC, positions=positions),
    )
    stores = {name: tmp_path / name for name in models}
    plan_capture(models, prompts, stores=stores, spec=replace(SPEC, positions=positions))
    opened = CaptureJob.open(stores)
    units = opened.units
    assert len(units) > 5 and opened.missing() == units
    random.Random(0).shuffle(units)
    for unit in units:
        found = CaptureJob.open(stores).run(unit, models[unit.model])  # as another process would
        assert json.loads(json.dumps(found)) == found
        assert found["unit"] == unit.id and not found["reused"]
        assert (stores[unit.model] / found["path"]).stat().st_size == found["bytes"]
        assert opened.run(unit, models[unit.model])["reused"]
    assert opened.missing(thorough=True) == []
    opened.finish()
    for name in models:
        assert bytes_of(tmp_path / name) == bytes_of(tmp_path / f"whole-{name}")


def test_a_job_is_finished_only_when_every_unit_is_complete(model, prompts, tmp_path):
    job = plan_capture({"m": model}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    first, *rest = job.units
    for unit in rest:
        job.run(unit, model)
    with pytest.raises(
        IntegrityError,
        match=r"1 of \d units are not written yet, first 'm/shard-00000'; run them, then finish",
    ):
        job.finish()
    job.run(first, model)
    (tmp_path / "s" / "shard-00001.safetensors").write_bytes(b"")
    assert job.missing() == [CaptureUnit("m", 1)]
    job.run(CaptureUnit("m", 1), model)
    job.finish()
    with pytest.raises(
        UnknownNameError,
        match=(
            r"unit 'm/shard-00099' is not part of this capture,"
            r" which has \d from 'm/shard-00000' on"
        ),
    ):
        job.run(CaptureUnit("m", 99), model)


def test_a_unit_runs_only_as_it_was_planned(family, prompts, tmp_path):
    job = plan_capture({"m": family.instruct}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    with pytest.raises(
        IntegrityError,
        match=r"was planned for model .*, but this process has .*; run it as planned",
    ):
        job.run(job.units[0], family["one"])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(
            IntegrityError,
            match=f"was planned for threads {threads}, but this process has {threads + 1}",
        ):
            job.run(job.units[0], family.instruct)
    finally:
        torch.set_num_threads(threads)
    job.run(job.units[0], family.instruct)


def test_stores_of_two_captures_are_no_job(model, prompts, tmp_path, unchecked):
    plan_capture({"m": model}, prompts, stores={"m": tmp_path / "a"}, spec=SPEC)
    plan_capture(
        {"m": model}, prompts, stores={"m": tmp_path / "b"}, spec=replace(SPEC, layers=[1])
    )
    with pytest.raises(
        IntegrityError, match="was planned with other sites than .*; pass the stores of one capture"
    ):
        CaptureJob.open({"a": tmp_path / "a", "b": tmp_path / "b"})
    with pytest.raises(InputError, match="stores is empty; pass the directory of each model"):
        CaptureJob.open({})
    with pytest.raises(InputError, match="holds no capture that was begun; plan one first"):
        CaptureJob.open({"a": tmp_path})


def test_a_directory_is_held_by_one_capture(model, prompts, tmp_path):
    job = plan_capture({"m": model}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    other = CaptureJob.open({"m": tmp_path / "s"})
    with (
        job.alone(),
        pytest.raises(
            StateError,
            match="another process is capturing into this store; wait for it, or pass another",
        ),
    ):
        other.run(other.units[0], model)
    with job.alone(), pytest.raises(StateError, match="another process is capturing"):
        capture(model, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    other.run(other.units[0], model)
    capture(model, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    assert (
        sorted(
            path.suffix
            for path in (tmp_path / "s").iterdir()
            if path.suffix not in (".json", ".safetensors")
        )
        == []
    )


@pytest.mark.parametrize(
    "damage", ["plan.json cut", "plan.json gone", "plan.json edited", "rows cut", "rows gone"]
)
def test_a_damaged_plan_is_written_anew_and_finished_shards_are_kept(
    model, prompts, tmp_path, damage, unchecked
):
    capture(model, prompts, store=tmp_path / "whole", progress=False, spec=SPEC)
    job = plan_capture({"m": model}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    job.run(job.units[0], model)
    path = tmp_path / "s" / ("plan.json" if damage.startswith("plan") else "rows.safetensors")
    if damage.endswith("gone"):
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(
            content[: len(content) // 2]
            if damage.endswith("cut")
            else content.replace(b'"batch_tokens": 45', b'"batch_tokens": 46')
        )
    message = (
        "holds no capture that was begun"
        if damage == "plan.json gone"
        else "is damaged; capture into this directory again with the same"
    )
    with pytest.raises((InputError, IntegrityError), match=message):
        CaptureJob.open({"m": tmp_path / "s"})
    again = plan_capture({"m": model}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    assert again.missing(thorough=True) == again.units[1:]
    capture(model, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


def test_a_damaged_plan_of_another_capture_is_refused(family, prompts, tmp_path):
    capture(family.instruct, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    (tmp_path / "s" / "plan.json").write_text("{")
    before = bytes_of(tmp_path / "s")
    with pytest.raises(
        IntegrityError,
        match=(
            r"plan.json is missing or damaged, and shard-00000.json belongs to another capture;"
            r" capture into"
        ),
    ):
        capture(family["one"], prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    assert bytes_of(tmp_path / "s") == before


# ---- out of memory


@pytest.fixture
def scarce(monkeypatch, family):
    """Passes of some adapters fail above so many padded tokens; the sizes that ran are returned."""

    def set_limit(limits, error=None):
        error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        run, ran = type(family.instruct).run, []

        def limited(self, batch, *args, **kwargs):
            if batch.ids.numel() > limits.get(self.adapter, 10**9):
                raise error
            ran.append((self.adapter, batch.index))
            return run(self, batch, *args, **kwargs)

        monkeypatch.setattr(type(family.instruct), "run", limited)
        return ran

    return set_limit


@pytest.mark.parametrize(
    ("limits", "stored"),
    [
        ({None: 30}, ()),
        ({"one": 30}, ("a", "b")),
        ({None: 40, "one": 25}, ("a",)),
        ({None: 40, "one": 25}, ("b",)),
    ],
)
def test_both_models_run_the_cut_batches(family, prompts, tmp_path, scarce, limits, stored):
    ran = scarce(limits)
    stores = {name: tmp_path / name for name in stored}
    models = {"a": family.instruct, "b": family["one"]}
    found = capture_many(models, prompts, stores=stores, progress=False, spec=SPEC)
    cuts = found["a"].provenance["replanned"]
    assert cuts and cuts == found["b"].provenance["replanned"]
    assert found["a"].provenance["layout_sha256"] == found["b"].provenance["layout_sha256"]
    last = {}  # what ran last of each row is what was kept
    for adapter, index in ran:
        last.update({(adapter, i): index for i in index})
    assert all(last[None, i] == last["one", i] for i in range(len(prompts)))
    activation_deltas(found["a"], found["b"])
    for name, model in models.items():
        for index in {last[None, i] for i in range(len(prompts))}:
            alone = capture(
                model,
                prompts.select([prompts.ids[j] for j in index]),
                spec=CaptureSpec(batch_tokens=10**6),
                progress=False,
            )
            assert torch.equal(found[name].select(alone.ids)["resid_post.2"], alone["resid_post.2"])


def test_a_cut_is_kept_for_the_next_process_and_told_apart(
    family, prompts, tmp_path, scarce, monkeypatch
):
    whole = capture(family.instruct, prompts, progress=False, spec=SPEC)
    scarce({None: 30})
    cut = capture(family.instruct, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    assert sorted(path.name for path in (tmp_path / "s").glob("replan-*.json"))
    with pytest.raises(IntegrityError, match="before and after differ in layout_sha256"):
        activation_deltas(whole, cut)
    before = bytes_of(tmp_path / "s")
    monkeypatch.undo()
    (tmp_path / "s" / "shard-00001.safetensors").unlink()
    monkeypatch.setattr(batch_layout, "SHARD_ROWS", 2)
    capture(family.instruct, prompts, store=tmp_path / "s", progress=False, spec=SPEC)
    # with memory enough, the recorded parts are run again
    assert bytes_of(tmp_path / "s") == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_the_other_ways_to_run_out(family, prompts, scarce, error):
    scarce({None: 30}, error)
    before, after = capture_pair(family.instruct, family["one"], prompts, progress=False, spec=SPEC)
    assert before.provenance["replanned"] == after.provenance["replanned"] != {}


def test_one_row_that_does_not_fit_alone_is_named(family, prompts, scarce):
    scarce({None: 10})
    with pytest.raises(
        InputError,
        match=(
            r"prompt 'q\d' with \d+ tokens does not fit into memory alone \(CUDA out of memory.*\);"
            r" shorten it"
        ),
    ):
        capture(family.instruct, prompts, progress=False, spec=SPEC)
    scarce({None: 10}, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        capture(family.instruct, prompts, progress=False, spec=SPEC)


def test_a_large_capture_asks_first(model, prompts, tmp_path, monkeypatch):
    from emlens.activations import capturing

    whole = capture(model, prompts, positions=["last_prompt", "all"], progress=False)
    size = sum(value.nbytes for value in whole._values.values())
    monkeypatch.setattr(capturing, "LARGE_BYTES", size - 1)
    with pytest.raises(
        InputError,
        match=(
            r"this capture keeps .* GB \(last_prompt .* GB,"
            r" all .* GB over 3 sites and 1 models\).*pass large=True"
        ),
    ):
        capture(model, prompts, positions=["last_prompt", "all"], store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert isinstance(
        capture(model, prompts, store=tmp_path / "s", spec=CaptureSpec(large=True), progress=False),
        ActivationStore,
    )
    monkeypatch.setattr(capturing, "LARGE_BYTES", size)
    capture(model, prompts, positions=["last_prompt", "all"], progress=False)
    with pytest.raises(InputError, match="over 3 sites and 2 models"):
        capture_many({"a": model, "b": model}, prompts, positions=["last_prompt", "all"])


def test_the_number_of_a_device_is_no_part_of_a_plan(model, prompts, tmp_path):
    from emlens.activations.capture_provenance import process_provenance

    provenance = process_provenance(model)
    assert provenance["model"]["device"] == provenance["device"] == "cpu"
    other = copy.copy(model)
    other.provenance = {**model.provenance, "device": "cpu:0"}
    plan_capture({"m": model}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    job = plan_capture({"m": other}, prompts, stores={"m": tmp_path / "s"}, spec=SPEC)
    job.run(job.units[0], other)


def test_shared_first_tokens_change_no_bytes_between_processes_and_values_by_rounding(
    family, tmp_path
):
    models = {"before": family.instruct, "after": family["one"]}
    start = " ".join(["w1 w2 w3 w4"] * 8)
    asked = PromptSet.from_questions(
        [f"{start} {text}" for text in tiny_models.texts(9)], ids=[f"q{i}" for i in range(9)]
    )
    spec = CaptureSpec(positions=["last_prompt", "mean_prompt", "all"], batch_tokens=150)
    stores = {name: tmp_path / f"whole-{name}" for name in models}
    shared = capture_many(models, asked, stores=stores, spec=spec, progress=False)
    assert shared["before"].provenance["shared_tokens"] > 150
    again = {name: tmp_path / name for name in models}
    plan_capture(models, asked, stores=again, spec=spec)
    opened = CaptureJob.open(again)
    for unit in reversed(opened.units):
        CaptureJob.open(again).run(unit, models[unit.model])
    opened.finish()
    for name in models:
        assert bytes_of(stores[name]) == bytes_of(again[name])
    assert opened.missing(thorough=True) == []
    whole = capture_many(models, asked, spec=replace(spec, shared_prefixes=False), progress=False)
    assert whole["before"].provenance["shared_tokens"] == 0
    for name, position in product(models, ("last_prompt", "mean_prompt")):
        assert tiny_models.close(shared[name].stacked(position), whole[name].stacked(position))
    site = shared["before"].sites[-1]
    assert tiny_models.close(
        shared["after"].tokens(site).values, whole["after"].tokens(site).values
    )
    with pytest.raises(IntegrityError, match="another batch layout"):
        activation_deltas(whole["before"], shared["after"])
