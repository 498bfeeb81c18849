"""Records and configurations of others that are odd: one line, and nothing of it is believed."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from emlens.data.sweeps import read_sweep
from emlens.evaluation.sparse_features import SparseFeatures
from emlens.foundation.errors import EmlensError, InputError, IntegrityError
from emlens.foundation.files import read_json
from emlens.foundation.records import write_checked
from emlens.models.hub_upload import model_card
from emlens.organisms import load_organism
from emlens.organisms.layout import INDEX, STRENGTHS, TRUTH, WORLD
from emlens.organisms.loading import ASSETS
from emlens.replication import replicate
from emlens.studies.families_beside import MOST_FAMILIES, read_members
from emlens.studies.trajectories import _rates_of_trainer


def copy_of_organism(home: Path) -> Path:
    home.mkdir()
    for file in (ASSETS / "planted").iterdir():
        if file.is_dir():
            (home / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, home / file.name)
    return home


@pytest.mark.parametrize("name", [INDEX, WORLD, STRENGTHS, TRUTH])
def test_records_of_an_organism(tmp_path: Path, name: str) -> None:
    home = copy_of_organism(tmp_path / "o")
    record = read_json(home / name)
    for damaged in ("[]", "{", "{}", '{"finetunes": [1], "strengths": 3, "coupling": []}'):
        (home / name).write_text(damaged)
        with pytest.raises(EmlensError, match=f"{name}") as caught:
            load_organism(directory=home)
        assert str(caught.value).isprintable()
    write_checked(home / name, record)
    load_organism(directory=home)
    written = read_json(home / name)
    first = next(key for key in written if key != "record_sha256")
    (home / name).write_text(json.dumps({**written, first: "other"}))
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        load_organism(directory=home)


@pytest.mark.parametrize(
    "tensors",
    [
        {f"\x1b[2J{i}": torch.ones(1) for i in range(300)},
        {"W_dec": torch.ones(2, 3, dtype=torch.complex64)},
        {"W_dec": torch.full((2, 3), 1e308, dtype=torch.float64)},
        {"W_dec": torch.ones(0, 3)},
    ],
    ids=["names", "complex", "too large", "no row"],
)
def test_autoencoders(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError, match="W_dec is no matrix of finite numbers") as caught:
        SparseFeatures.load(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_the_hook_of_an_autoencoder_is_a_line(tmp_path: Path) -> None:
    eighth = torch.ones(2, 3).to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"W_dec": eighth}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"hook_name": "\x1b[2J" + "x" * 9999}))
    place = SparseFeatures.load(tmp_path).place
    assert place.isprintable() and len(place) <= 200
    (tmp_path / "cfg.json").write_text(json.dumps({"hook_name": {"a": 1}}))
    assert SparseFeatures.load(tmp_path).place == ""


@pytest.mark.parametrize(
    ("fields", "cell", "said"),
    [
        ('file: a.json, published: "1"', 10**400, "holds what is no number"),
        ('file: a.json, published: "1e999"', 1, "published"),
        (f'file: a.json, published: "1{"0" * 99}"', 1, "at most 40 characters"),
        ('file: a.json, published: "1", tolerance: .inf', 1, "finite number"),
        ('file: "a\\0.json", published: "1"', 1, "is no path"),
        (f'file: "{"a" * 5000}", published: "1"', 1, "is no path"),
        ('file: "\\e[2J.json", published: "1"', 1, "no such file"),
    ],
)
def test_figures_of_a_folder(tmp_path: Path, fields: str, cell: int, said: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"x": cell}]))
    entry = f"figures:\n  - {{{fields}, function: mean, columns: [x]}}\n"
    (tmp_path / "replication.yaml").write_text(entry)
    with pytest.raises(InputError, match=said) as caught:
        replicate(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("state", ["[]", '{"log_history": [3]}', '{"log_history": 3}'])
def test_states_of_a_trainer(tmp_path: Path, state: str) -> None:
    home = tmp_path / "checkpoint-3"
    home.mkdir()
    (home / "trainer_state.json").write_text(state)
    (home / "adapter_config.json").write_text("{}")
    (home / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="log_history is no list of steps"):
        _rates_of_trainer(tmp_path)


def test_records_of_runs_and_cards(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (tmp_path / "runs.csv").write_text("run,train_loss,aligned\na,1.5,80\n")
    for record in ("[]", "{}", '{"recipe": [1]}'):
        (run / "emlens.json").write_text(record)
        with pytest.raises(IntegrityError, match="train the run again"):
            read_sweep(tmp_path)
    (run / "emlens.json").write_text('{"parent": 3, "recipe": [1], "data": "x"}')
    assert "Trained with emlens" in model_card(run)
    (tmp_path / "direction.json").write_text("[]")
    with pytest.raises(IntegrityError, match="holds a list, not a record"):
        model_card(tmp_path)


def test_families_are_bounded(tmp_path: Path) -> None:
    names = ", ".join(f"f{n}: {{family: {{organism: planted}}}}" for n in range(MOST_FAMILIES + 1))
    file = tmp_path / "study.yaml"
    file.write_text(f"study: overview\nfamilies: {{{names}}}\n")
    with pytest.raises(InputError, match=f"more than {MOST_FAMILIES}; split the file"):
        read_members(file)
