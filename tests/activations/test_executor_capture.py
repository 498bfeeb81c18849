"""One process, ranks and Ray actors capture the same bytes; a killed worker loses and doubles
nothing.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import tiny_models
import torch
from activations.capture_work import ROWS, SPEC, Load, bytes_of, load_both, prompts, start

from emlens.activations import (
    ActivationStore,
    activation_deltas,
    batch_layout,
    capture,
    capture_job,
    capture_many,
)
from emlens.activations.capturing import plan_capture
from emlens.activations.executor_capture import capture_many_over, capture_over
from emlens.foundation import InputError, IntegrityError
from emlens.models import load_model
from emlens.runs import LocalExecutor, RayExecutor


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("executor_capture")
    tiny_models.build(root / "instruct")
    tiny_models.build_adapter(root / "one", root / "instruct")
    return root


@pytest.fixture
def load(files, tmp_path):
    (tmp_path / "accidents").mkdir()
    return Load(files / "instruct", tmp_path / "accidents")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(batch_layout, "SHARD_ROWS", ROWS)


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory):
    """The store that `capture` writes in one process."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_layout, "SHARD_ROWS", ROWS)
        capture(load_model(files / "instruct"), prompts(), store=store, progress=False, spec=SPEC)
    return store


def answers(store):
    records = [
        json.loads(path.read_text()) for path in (store / "units" / "answers").glob("*.json")
    ]
    return {
        record["name"]: record["result"]
        for record in records
        if not record["name"].startswith("finish")
    }


def test_one_process_with_an_executor_gives_the_bytes_of_capture(load, undisturbed, tmp_path):
    found = capture_over(
        LocalExecutor(), load, prompts(), tmp_path / "store", progress=False, spec=SPEC
    )
    assert bytes_of(tmp_path / "store") == bytes_of(undisturbed) and isinstance(
        found, ActivationStore
    )
    assert (
        len(load.loads) == 1
        and len(answers(tmp_path / "store")) == len(list(undisturbed.glob("shard-*.json"))) > 5
    )
    again = capture_over(
        LocalExecutor(), load, prompts(), tmp_path / "store", progress=False, spec=SPEC
    )
    assert torch.equal(again["resid_post.2", "last_prompt"], found["resid_post.2", "last_prompt"])
    assert bytes_of(tmp_path / "store") == bytes_of(undisturbed)


def test_four_ranks_give_the_bytes_of_one_process(load, undisturbed, tmp_path):
    ranks = [start(load, tmp_path / "store", rank, 4) for rank in range(4)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert bytes_of(tmp_path / "store") == bytes_of(undisturbed)
    found = answers(tmp_path / "store")
    assert len(set(load.loads)) == len(load.loads) == 4
    assert sum(answer["rows"] for answer in found.values()) == len(prompts()) and not any(
        answer["reused"] for answer in found.values()
    )


@pytest.mark.parametrize("at", [1, 2])
def test_a_rank_killed_in_the_middle_of_a_shard(load, undisturbed, tmp_path, at):
    (load.accidents / f"die-at-{at}").touch()
    ranks = [start(load, tmp_path / "store", rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.join(120)
    assert sorted(rank.exitcode for rank in ranks) == [-signal.SIGKILL, 0]
    assert bytes_of(tmp_path / "store") == bytes_of(undisturbed)
    assert sum(answer["rows"] for answer in answers(tmp_path / "store").values()) == len(prompts())
    (record,) = (tmp_path / "store" / "units" / "claims").glob("*.failed.json")
    assert "it was killed" in record.read_text()


def test_two_ray_actors_give_the_same_rows(load, undisturbed, tmp_path, repository, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: it runs the actors")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(repository / "tests"))
    found = capture_over(
        RayExecutor(2), load, prompts(), tmp_path / "store", progress=False, spec=SPEC
    )
    whole = ActivationStore.open(undisturbed)
    # a busy machine may be done before the second has loaded
    assert found.ids == whole.ids and len(set(load.loads)) == len(load.loads) <= 2
    for site in whole.sites:
        assert torch.equal(found[site, "last_prompt"], whole[site, "last_prompt"])
        assert torch.equal(found.tokens(site).values, whole.tokens(site).values)
    assert bytes_of(tmp_path / "store") == bytes_of(undisturbed)


def test_what_capture_began_the_executor_finishes_and_the_other_way_round(
    load, files, undisturbed, tmp_path
):
    store = tmp_path / "store"
    capture(load_model(files / "instruct"), prompts(), store=store, progress=False, spec=SPEC)
    for name in ("manifest.json", "shard-00003.json", "shard-00005.safetensors"):
        (store / name).unlink()
    capture_over(LocalExecutor(), load, prompts(), store, progress=False, spec=SPEC)
    assert bytes_of(store) == bytes_of(undisturbed)
    assert {name[-2:] for name, answer in answers(store).items() if not answer["reused"]} == {
        "03",
        "05",
    }
    (store / "shard-00004.json").unlink()
    capture(load_model(files / "instruct"), prompts(), store=store, progress=False, spec=SPEC)
    assert bytes_of(store) == bytes_of(undisturbed)


def test_a_damaged_shard_is_restored_by_the_same_call(load, undisturbed, tmp_path):
    store = tmp_path / "store"
    capture_over(LocalExecutor(), load, prompts(), store, progress=False, spec=SPEC)
    path = store / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert bytes_of(store) != bytes_of(undisturbed)
    capture_over(LocalExecutor(), load, prompts(), store, progress=False, spec=SPEC)
    assert bytes_of(store) == bytes_of(undisturbed)


def test_both_sides_of_a_pair(files, tmp_path):
    both = partial(load_both, files / "instruct", files / "one")
    stores = {"instruct": tmp_path / "before", "one": tmp_path / "after"}
    found = capture_many_over(LocalExecutor(), both, prompts(), stores, progress=False, spec=SPEC)
    family = both()
    whole = {name: tmp_path / f"whole-{name}" for name in stores}
    capture_many(
        {name: family[name] for name in stores}, prompts(), stores=whole, progress=False, spec=SPEC
    )
    for name in stores:
        assert bytes_of(stores[name]) == bytes_of(whole[name])
    deltas = activation_deltas(found["instruct"], found["one"])
    assert float(deltas["resid_post.2", "last_prompt"].abs().max()) > 0
    before = capture_over(
        LocalExecutor(),
        lambda: family.instruct,
        prompts(),
        stores["instruct"],
        progress=False,
        spec=SPEC,
    )
    # one side alone is another plan of units, on the same store
    assert before.ids == found["instruct"].ids


def test_a_batch_cut_for_one_side_is_run_again_for_the_other(files, tmp_path, monkeypatch):
    family = load_both(files / "instruct", files / "one")
    run = type(family.instruct).run

    def limited(self, batch, *arguments, **named):
        if self.adapter == "one" and batch.ids.numel() > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return run(self, batch, *arguments, **named)

    monkeypatch.setattr(type(family.instruct), "run", limited)
    stores = {"instruct": tmp_path / "before", "one": tmp_path / "after"}
    found = capture_many_over(
        LocalExecutor(), lambda: family, prompts(), stores, progress=False, spec=SPEC
    )
    assert found["instruct"].provenance["replanned"] == found["one"].provenance["replanned"] != {}
    activation_deltas(found["instruct"], found["one"])
    whole = {name: tmp_path / f"whole-{name}" for name in stores}
    capture_many(
        {name: family[name] for name in stores}, prompts(), stores=whole, progress=False, spec=SPEC
    )
    for name in stores:
        assert bytes_of(stores[name]) == bytes_of(whole[name])


def test_every_worker_computes_with_the_planned_threads(load, tmp_path):
    try:
        found = capture_over(
            LocalExecutor(),
            load,
            prompts(),
            tmp_path / "store",
            threads=2,
            progress=False,
            spec=SPEC,
        )
        assert found.provenance["threads"] == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(1)
    with pytest.raises(IntegrityError, match="begun for another model"):
        capture_over(
            LocalExecutor(), load, prompts(), tmp_path / "store", progress=False, spec=SPEC
        )


def test_calls_that_cannot_be(files, tmp_path, unchecked):
    model = load_model(files / "instruct")
    with pytest.raises(
        InputError,
        match=(
            "load is a TransformersModel; pass a function that loads it, such as functools.partial"
        ),
    ):
        capture_over(LocalExecutor(), model, prompts(), tmp_path / "store")
    with pytest.raises(
        InputError,
        match="load gave a dict where a model was expected; return what emlens.load_model returns",
    ):
        capture_over(LocalExecutor(), dict, prompts(), tmp_path / "store")
    with pytest.raises(InputError, match="load gave a dict where a model was expected"):
        capture_many_over(LocalExecutor(), lambda: {"a": 3}, prompts(), {"a": tmp_path / "store"})
    with pytest.raises(
        InputError, match="stores is empty; pass the directory of each model to capture"
    ):
        capture_many_over(LocalExecutor(), lambda: {"a": model}, prompts(), {})
    assert not (tmp_path / "store").exists()


def _script(text):
    """What a script defines, imported and not run as the main one."""
    namespace = {"__name__": "script"}
    exec(text, namespace)
    return namespace


def test_the_scripts_of_the_documentation(files, tmp_path, repository, monkeypatch, capsys):
    first, answering, _, second = re.findall(  # the third needs a cluster
        r"^```python\n(.*?)^```",
        (repository / "docs" / "running.md").read_text("utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    (tmp_path / "capture.py").write_text(first)
    environment = os.environ | {"PYTHONPATH": str(repository)}

    def told(*command):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    model = str(files / "instruct")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    ranks = told(*torchrun, "capture.py", model, "ranks", "ranks")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    _script(first)["main"](model, "alone", "local")
    alone = capsys.readouterr().out
    assert alone == "200 rows at resid_post.0, resid_post.1\n" and ranks == 2 * alone
    assert bytes_of(tmp_path / "ranks") == bytes_of(tmp_path / "alone")
    (tmp_path / "questions.jsonl").write_text(
        '{"id": "a", "text": "w1"}\n{"id": "b", "text": "w2"}\n'
    )
    _script(second)
    _script(answering)["main"](model, "questions.jsonl")
    assert capsys.readouterr().out == "10 done of 10\n4 verdicts\n"


def test_half_written_files_are_swept_only_where_nobody_works(files, tmp_path):
    store, model = tmp_path / "store", load_model(files / "instruct")
    planned = plan_capture({"m": model}, prompts(), stores={"m": store}, spec=SPEC)
    half = store / ".shard-00000.safetensors.x.part"
    half.write_bytes(b"being written, or left by a kill")
    with capture_job._lock(store, alone=False):
        # another rank starts while one writes
        plan_capture({"m": model}, prompts(), stores={"m": store}, spec=SPEC)
        assert half.exists()
    held = threading.Event()

    def sweep():
        with capture_job._lock(store, alone=True):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=sweep)
    thread.start()
    assert held.wait(10)
    for unit in planned.units:  # the first waits for the sweep instead of failing
        planned.run(unit, model)
    thread.join()
    planned.finish()
    assert not half.exists()
