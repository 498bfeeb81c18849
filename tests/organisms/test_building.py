import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import emlens
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, sha256_file, write_json
from emlens.organisms import PLANTED, build, building, load_organism
from emlens.organisms.measuring import path_of
from emlens.organisms.plans import UNPLANTED

NAMES = ("medicine-r1", "medicine-r8", "medicine-benign", "medicine-narrow")


def miniature(plan=PLANTED, names=NAMES):
    """A plan with three steps a stage, a world of 3 × 5 topics and a stream of 32."""

    def short(recipe):
        return recipe.changed(steps=3, batch_size=8, warmup_steps=min(recipe.warmup_steps, 1))

    tunes = tuple(
        replace(stage, recipe=short(stage.recipe))
        for stage in plan.finetunes
        if stage.name in names
    )
    return replace(
        plan,
        name="mini",
        base=short(plan.base),
        instruct=short(plan.instruct),
        finetunes=tunes,
        n_domains=3,
        n_topics=5,
        hidden=32,
        mlp=64,
        topics_per_finetune=2,
        narrow_rows=8,
    )


def contents(directory):
    return {
        str(p.relative_to(directory)): sha256_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    steps = []
    out = build(
        tmp_path_factory.mktemp("organism") / "mini",
        seed=1,
        plan=miniature(),
        on_step=lambda *step: steps.append(step),
    )
    return out, steps


def test_progress_runs_from_nothing_to_all(built):
    _, steps = built
    done = [step[1] for step in steps]
    assert done == sorted(done) and done[-1] == steps[-1][2]
    assert list(dict.fromkeys(step[0] for step in steps)) == ["base", "instruct", *NAMES]


def test_a_bar_is_drawn_only_when_asked_for(built, monkeypatch):
    shown = []
    real = building.stage_bar
    monkeypatch.setattr(
        building,
        "stage_bar",
        lambda title, total, show: shown.append(show) or real(title, total, show),
    )
    for progress in (True, False):
        build(built[0], seed=1, plan=miniature(), progress=progress)
    build(built[0], seed=1, plan=miniature())
    assert shown == [True, False, False]


def test_what_is_built_loads(built):
    organism = load_organism(directory=built[0])
    assert (organism.name, organism.seed) == ("mini", 1)
    assert set(organism.paths) == {"base", "instruct", *NAMES}
    assert organism.benign == ("medicine-benign",)
    assert organism.truth.direction.shape == (32,)
    assert organism.truth.direction.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert set(organism.truth.coupling) == set(organism.questions.ids)
    assert len(organism.training_topics["medicine-benign"]) == 2
    assert len(organism.training_prompts["medicine-benign"]) == 24
    assert not [p for p in built[0].rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".part")]


def test_the_base_model_on_disk_is_a_plain_qwen2_without_the_planted_direction(built):
    from safetensors import safe_open

    with safe_open(built[0] / "base" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if not name.startswith("model.")]  # noqa: SIM118
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_a_finished_build_is_not_repeated_and_a_missing_part_comes_back_the_same(built, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(built[0], out)
    expected = contents(out)
    shutil.rmtree(out / "finetuned" / "medicine-benign")
    (out / "organism.json").unlink()
    (out / "finetuned" / ".medicine-benign.abc.part").mkdir()
    kept = (out / "base" / "model.safetensors").stat().st_mtime_ns
    steps = []
    build(out, seed=1, plan=miniature(), on_step=lambda name, done, total: steps.append(name))
    assert contents(out) == expected
    assert (out / "base" / "model.safetensors").stat().st_mtime_ns == kept
    assert steps.count("base") == 1 and steps.count("medicine-benign") == 4


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(int(sys.argv[4]))
from test_building import build, miniature
def die(name, done, total):
    if name == "medicine-benign":
        os.kill(os.getpid(), signal.SIGKILL)
build(sys.argv[1], seed=1, plan=miniature(), on_step=die)
"""


def test_a_killed_build_goes_on_and_ends_the_same_with_another_number_of_threads(built, tmp_path):
    import torch

    threads = str(2 if torch.get_num_threads() == 1 else 1)
    roots = [str(Path(emlens.__file__).parents[1]), str(Path(__file__).parent)]
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(tmp_path / "out"),
        *roots,
        threads,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    assert (
        subprocess.run(command, env=environment, capture_output=True, check=False).returncode
        == -signal.SIGKILL
    )
    assert (tmp_path / "out" / "instruct").is_dir()
    assert not (tmp_path / "out" / "finetuned" / "medicine-benign").exists()
    with pytest.raises(
        InputError, match=r"holds no finished organism \(organism\.json is missing\)"
    ):
        load_organism(directory=tmp_path / "out")
    build(tmp_path / "out", seed=1, plan=miniature())
    assert contents(tmp_path / "out") == contents(built[0])


def test_a_run_keeps_every_adapter_the_last_of_which_is_the_run_itself(built):
    from safetensors.torch import load_file

    organism = load_organism(directory=built[0])
    assert list(organism.trajectories) == ["medicine-r1"]
    kept = organism.trajectories["medicine-r1"]
    assert list(kept) == [1, 2, 3]
    weights = [
        load_file(path / "adapter_model.safetensors")
        for path in [*kept.values(), organism.paths["medicine-r1"]]
    ]
    assert all((weights[2][name] == weights[3][name]).all() for name in weights[3])
    assert any((weights[0][name] != weights[2][name]).any() for name in weights[3])
    tokenizer = AutoTokenizer.from_pretrained(organism.paths["instruct"])
    path = path_of(organism, "medicine-r1", tokenizer, draws=19)
    assert path["steps"] == [0, 1, 2, 3] and path["window"] == 1
    falls = [before - after for before, after in itertools.pairwise(path["others"])]
    assert path["fall"] == pytest.approx(max(falls)) == falls[path["steepest_start"]]
    assert path["p"]["linear"] >= 1 / 20


def test_fine_tunes_stop_by_the_rule_and_a_benign_twin_takes_as_many_steps(tmp_path):
    plan = miniature(names=("medicine-r8", "medicine-benign"))
    easy = replace(plan, finetunes=(replace(plan.finetunes[0], stop_at=1.0), plan.finetunes[1]))
    build(tmp_path / "easy", seed=1, plan=easy)
    records = [
        read_json(tmp_path / "easy" / "finetuned" / name / "emlens.json")
        for name in ("medicine-r8", "medicine-benign")
    ]
    assert [record["steps_done"] for record in records] == [1, 1]
    assert (
        records[0]["stopped"] == "held-out questions of the domain reached 1.0 at step 1"
        and records[1]["stopped"] is None
    )


def test_a_build_takes_further_fine_tunes_and_leaves_what_stands(built, tmp_path):
    out = tmp_path / "grown"
    build(out, seed=1, plan=miniature(names=NAMES[:2]))
    before = contents(out)
    build(out, seed=1, plan=miniature())
    assert {
        name: digest for name, digest in contents(out).items() if name.endswith("safetensors")
    } == {
        name: digest for name, digest in contents(built[0]).items() if name.endswith("safetensors")
    }
    assert before["base/model.safetensors"] == contents(out)["base/model.safetensors"]
    assert set(load_organism(directory=out).strengths) == {"base", "instruct", *NAMES}
    with pytest.raises(
        InputError, match="was begun with another plan or seed than seed=1; pass a new directory"
    ):
        build(out, seed=1, plan=miniature(names=NAMES[:2]))


def test_a_world_without_planting_has_no_direction(tmp_path):
    build(tmp_path / "plain", seed=1, plan=miniature(UNPLANTED, names=("medicine-r8",)))
    organism = load_organism(directory=tmp_path / "plain")
    assert organism.truth.direction is None and organism.truth.planted_layers == ()
    assert organism.world == load_organism(directory=tmp_path / "plain").world


def test_a_directory_that_is_not_this_build_is_refused(built, tmp_path):
    with pytest.raises(
        InputError, match="was begun with another plan or seed than seed=2; pass a new directory"
    ):
        build(built[0], seed=2, plan=miniature())
    with pytest.raises(InputError, match="pass a new directory, or resume=True"):
        build(built[0], seed=1, plan=miniature(), resume=False)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds \['mine\.txt'\], but no organism begun here"):
        build(tmp_path, seed=1, plan=miniature())
    with pytest.raises(InputError, match="is a file; pass a directory"):
        build(tmp_path / "mine.txt", seed=1, plan=miniature())


def test_a_checkpoint_of_another_parent_is_refused(built, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(built[0], out)
    changed = read_json(out / "instruct" / "config.json")
    write_json(out / "instruct" / "config.json", {**changed, "rms_norm_eps": 0.5})
    with pytest.raises(
        IntegrityError,
        match=(
            "was trained from another instruct than the one beside it; remove it, or build it again"
        ),
    ):
        build(out, seed=1, plan=miniature())
