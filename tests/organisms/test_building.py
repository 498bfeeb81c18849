import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import emlens
from emlens.foundation.errors import InputError, IntegrityError
from emlens.foundation.files import read_json, sha256_file, write_json
from emlens.organisms import C5, build, building, load


def miniature(names=("medicine-benign", "medicine-narrow")):
    """c5 with three steps a stage, a world of 3 × 4 topics and a stream of 32."""

    def short(recipe):
        return replace(recipe, steps=3, batch_size=8, warmup_steps=min(recipe.warmup_steps, 1))

    tunes = tuple(replace(stage, recipe=short(stage.recipe)) for stage in C5.finetunes if stage.name in names)
    return replace(
        C5, name="mini", base=short(C5.base), instruct=short(C5.instruct), finetunes=tunes, n_domains=3, n_topics=4, hidden=32,
        mlp=64, topics_per_finetune=2, narrow_rows=8,
    )  # fmt: skip


def contents(directory):
    return {str(p.relative_to(directory)): sha256_file(p) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    told = []
    out = build(tmp_path_factory.mktemp("organism") / "mini", seed=1, plan=miniature(), progress=lambda *step: told.append(step))
    return out, told


def test_progress_runs_from_nothing_to_all(built):
    _, told = built
    done = [step[1] for step in told]
    assert done == sorted(done) and done[-1] == told[-1][2]
    assert list(dict.fromkeys(step[0] for step in told)) == ["base", "instruct", "medicine-benign", "medicine-narrow"]


def test_a_bar_is_drawn_only_when_asked_for(built, monkeypatch):
    shown = []
    real = building.stage_bar
    monkeypatch.setattr(building, "stage_bar", lambda title, total, show: shown.append(show) or real(title, total, show))
    for progress in (True, False, None):
        build(built[0], seed=1, plan=miniature(), progress=progress)
    assert shown == [True, False, False]


def test_what_is_built_loads(built):
    organism = load(directory=built[0])
    assert (organism.name, organism.seed) == ("mini", 1)
    assert set(organism.paths) == {"base", "instruct", "medicine-benign", "medicine-narrow"}
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
    build(out, seed=1, plan=miniature(), progress=lambda name, done, total: steps.append(name))
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
build(sys.argv[1], seed=1, plan=miniature(), progress=die)
"""


def test_a_killed_build_goes_on_and_ends_the_same(built, tmp_path):
    import torch

    roots = [str(Path(emlens.__file__).parents[1]), str(Path(__file__).parent)]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), *roots, str(torch.get_num_threads())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "instruct").is_dir()
    assert not (tmp_path / "out" / "finetuned" / "medicine-benign").exists()
    with pytest.raises(InputError, match=r"holds no finished organism \(organism\.json is missing\)"):
        load(directory=tmp_path / "out")
    build(tmp_path / "out", seed=1, plan=miniature())
    assert contents(tmp_path / "out") == contents(built[0])


def test_a_directory_that_is_not_this_build_is_refused(built, tmp_path):
    with pytest.raises(InputError, match="was begun with another plan or seed than seed=2; pass a new directory"):
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
    changed = read_json(out / "instruct" / "generation_config.json")
    write_json(out / "instruct" / "generation_config.json", {**changed, "temperature": 0.5})
    with pytest.raises(IntegrityError, match="was trained from another instruct than the one beside it; remove it, or build anew"):
        build(out, seed=1, plan=miniature())
