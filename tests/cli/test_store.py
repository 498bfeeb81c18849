"""`emlens store` as a person types it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from typer.testing import CliRunner

from emlens.activations import ActivationStore, CaptureSpec, capture
from emlens.activations.capture_job import CaptureJob
from emlens.activations.capturing import plan_capture
from emlens.cli.main import app, main
from emlens.data import PromptSet
from emlens.models import HookedModel, load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    return load_model(tiny_models.build(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def store(model: HookedModel, tmp_path: Path) -> Path:
    sites = ["resid_pre.0", "resid_post", "final_norm"]
    capture(
        model,
        PromptSet.from_texts(tiny_models.texts(6)),
        sites,
        positions=["last", "mean_prompt"],
        store=tmp_path / "acts",
        progress=False,
    )
    return tmp_path / "acts"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["emlens", "store", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.mark.parametrize("command", [[], ["info"], ["verify"], ["export"]])
def test_help_teaches(command: list[str]) -> None:
    shown = CliRunner().invoke(app, ["store", *command, "--help"])
    assert shown.exit_code == 0 and len(shown.output.split()) > 25


def test_info(run, store: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("info", store)
    assert code == 0
    for said in (
        "6 in 1 groups",
        "resid_pre.0",
        "final_norm",
        "last, mean_prompt",
        "model.weights_sha256",
        "float32",
        "threads",
    ):
        assert said in out
    code, out, _ = run("info", store, "--json")
    found = json.loads(out)
    assert code == 0 and found["finished"] and (found["rows"], found["shards"]) == (6, 1)
    assert found["bytes"] == (store / "shard-00000.safetensors").stat().st_size
    assert (
        found["provenance"]["rendered_sha256"]
        == ActivationStore.open(store).provenance["rendered_sha256"]
    )


def test_info_of_an_unfinished_capture(
    run, model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    from emlens.activations import batch_layout

    monkeypatch.setattr(batch_layout, "SHARD_ROWS", 2)
    job = plan_capture(
        {"m": model},
        PromptSet.from_texts(tiny_models.texts(6)),
        CaptureSpec(batch_tokens=20),
        stores={"m": tmp_path / "s"},
    )
    assert isinstance(job, CaptureJob)
    job.run(job.units[0], model)
    code, out, _ = run("info", tmp_path / "s")
    assert (
        code == 0
        and f"not finished: 1 of {len(job.units)} shards are written;"
        " the same capture goes on from there"
        in out
    )
    found = json.loads(run("info", tmp_path / "s", "--json")[1])
    assert found == {
        "finished": False,
        "rows": 6,
        "shards": len(job.units),
        "shards_missing": len(job.units) - 1,
    }


def test_verify(run, store: Path, unchecked: None) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("verify", store)
    assert code == 0 and "every byte is as it was written" in out
    path = store / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    code, out, _ = run("verify", store)
    assert (
        code == 1
        and "shard-00000.safetensors: tensor " in out
        and "run the capture again into this directory" in out
    )
    found = json.loads(run("verify", store, "--json")[1])
    assert not found["whole"] and len(found["damage"]) == 1
    path.unlink()
    code, out, _ = run("verify", store)
    assert code == 1 and "shard-00000.safetensors: is missing" in out
    (store / "manifest.json").write_text("{}")
    code, out, _ = run("verify", store)
    assert code == 1 and "manifest.json: was changed after it was written" in out


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("npz", "resid_post.1@mean_prompt"),
        ("persona_vectors", "activations"),
        ("transformer_lens", "blocks.1.hook_resid_post"),
    ],
)
def test_export(run, store: Path, tmp_path: Path, layout: str, name: str) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "out.npz"
    code, out, _ = run(
        "export", store, "--out", target, "--layout", layout, "--position", "mean_prompt", "--json"
    )
    assert code == 0 and json.loads(out) == {
        "file": str(target),
        "bytes": target.stat().st_size,
        "layout": layout,
    }
    values = np.load(target, allow_pickle=False)[name]
    expected = ActivationStore.open(store)["resid_post.1", "mean_prompt"].numpy()
    assert np.array_equal(values[2] if layout == "persona_vectors" else values, expected)


def test_bad_input_is_one_line(run, store: Path, tmp_path: Path, unchecked: None) -> None:  # type: ignore[no-untyped-def]
    for words, said in (
        (("info", tmp_path), "holds no activation store"),
        (("verify", tmp_path / "gone"), "holds no activation store"),
        (("export", store, "--out", tmp_path / "x.pt"), "the npz layout is written as .npz"),
        (
            ("export", store, "--out", tmp_path / "x.npz", "--layout", "transformer_lens"),
            "hold positions ['last', 'mean_prompt']",
        ),
    ):
        code, out, err = run(*words)
        assert (
            (code, out) == (2, "")
            and err.startswith("error: ")
            and err.count("\n") == 1
            and said in err
        )
    assert not list(tmp_path.glob("x.*"))
