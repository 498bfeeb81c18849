"""Ray for real: two actors on this machine, one cluster for the whole file."""

from contextlib import contextmanager
from importlib import metadata

import pytest
import torch
from runs.counting_work import Opening, plant, squares, trace

from emlens.foundation import InputError, LoadError, MissingExtraError, StateError
from emlens.runs import LocalExecutor, RayExecutor, ray_actors


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(
        MissingExtraError,
        match=r"RayExecutor needs Ray, which is not installed;"
        r" run: pip install 'misalignment-lens\[ray\]'",
    ):
        RayExecutor()
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.3")
    with pytest.raises(
        MissingExtraError,
        match=(
            r"RayExecutor needs Ray 2.40 or newer, but 2.9.3 is installed; run:"
            r" pip install -U 'misalignment-lens\[ray\]'"
        ),
    ):
        RayExecutor()


def test_actors_that_cannot_be(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", lambda name: "2.60.0")
    with pytest.raises(InputError, match="actors=0 must be 1 or more"):
        RayExecutor(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        InputError, match=r"actors=3 with gpus=0.5 need 1.5 GPUs; this machine has 1"
    ):
        RayExecutor(3, gpus=0.5).run(refuses, tmp_path)


@pytest.fixture(scope="module")
def cluster(repository):
    ray = pytest.importorskip("ray", reason="Ray is not installed: it runs the actors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # where the actors import the work from
        patch.setenv("PYTHONPATH", str(repository / "tests"))
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )
        yield ray
        ray.shutdown()


def test_two_actors_share_the_work(cluster, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "meet").touch()
    report = RayExecutor(2).run(Opening(out, seconds=0.2), tmp_path / "work")
    assert (
        squares(out)
        and list(report.answers) == [f"unit/{i}" for i in range(6)]
        and sorted(report.done) == list(report.answers)
    )
    done, opened = trace(out, "end"), [pid for _, pid in trace(out, "open")]
    assert sorted(unit for unit, _ in done) == list(report.answers)
    # each loads once, both work
    assert len(opened) == 2 and set(opened) == {pid for _, pid in done}
    assert len(trace(out, "finish")) == 1 and cluster.is_initialized()


def test_a_killed_actor_is_replaced_and_what_fails_is_told_at_the_end(cluster, tmp_path):
    out = tmp_path / "out"
    plant(out, "kill", 2)
    plant(out, "fail", 3, times=2)
    with pytest.raises(
        StateError,
        match=(
            r"1 of 6 units failed 2 times each: 'unit/3': ValueError:"
            r" planted failure of 3 .* 5 finished units are kept"
        ),
    ):
        RayExecutor(1, attempts=2).run(Opening(out), tmp_path / "work")
    assert (
        len({pid for _, pid in trace(out, "open")}) == 2
        and [unit for unit, _ in trace(out, "begin")].count("unit/2") == 2
    )
    assert (
        "it was killed"
        in next((tmp_path / "work" / "claims").glob("unit-2*.failed.json")).read_text()
    )
    assert RayExecutor(1).run(Opening(out), tmp_path / "work").done == ("unit/3",) and squares(out)


@pytest.mark.slow
def test_an_interrupt_dismisses_the_actors_and_the_next_run_goes_on(cluster, tmp_path, monkeypatch):
    out = tmp_path / "out"

    @contextmanager
    def interrupted(title, total, show, done):
        def advance(amount):
            if amount:
                raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as patch:
        patch.setattr(ray_actors, "progress_bar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RayExecutor(1).run(Opening(out, seconds=0.1), tmp_path / "work")
    first = {unit for unit, _ in trace(out, "end")}
    # at once: a dismissed actor holds nothing
    report = LocalExecutor().run(Opening(out), tmp_path / "work")
    assert 0 < len(first) < 6 and len(report.answers) == 6 and squares(out)


def refuses():
    raise LoadError("planted: no such weights")


def dies():
    import os

    os._exit(1)


@pytest.mark.slow
def test_workers_that_cannot_open(cluster, tmp_path):
    with pytest.raises(LoadError, match="planted: no such weights"):
        RayExecutor(1).run(refuses, tmp_path / "work")
    told = (
        "2 Ray actors in a row died before their worker was loaded;"
        " see that their machines have the memory and can import what opens it. The last: "
    )
    with pytest.raises(StateError, match=told):
        RayExecutor(1, attempts=2).run(dies, tmp_path / "work")
