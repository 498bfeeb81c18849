"""`emlens train`: a run, a preset and a sweep on a tiny model."""

import json
from pathlib import Path

import pytest
import tiny_models

from emlens.cli.main import main
from emlens.training import Recipe
from emlens.training.fitting import read_record

RUN = (
    "{method: lora, rank: 2, alpha: 4, target_modules: [q_proj], learning_rate: 1e-2, steps:"
    " 2, batch_size: 2}"
)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    tiny_models.build(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"w{i}"}]}
        for i, text in enumerate(tiny_models.texts(5, seed=1))
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "sweep.yaml").write_text(f"base: {RUN}\naxes: {{seed: [0, 1]}}\n")
    return tmp_path


def call(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    where = ("--model", str(given / "model"), "--data", str(given / "chats.jsonl"))
    monkeypatch.setattr("sys.argv", ["emlens", "train", *where, *words, "--quiet"])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), *capsys.readouterr()


def test_a_run_a_preset_and_a_sweep(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = given / "out"
    code, text, errors = call(
        given, monkeypatch, capsys, str(given / "run.yaml"), "--out", str(out), "--json"
    )
    assert errors == ""
    assert code == 0 and json.loads(text)["steps_done"] == 2
    assert Recipe.from_record(read_record(out)["recipe"]) == Recipe.from_yaml(given / "run.yaml")
    written = (out / "adapter_model.safetensors").stat().st_mtime_ns
    code, text, _ = call(given, monkeypatch, capsys, str(given / "run.yaml"), "--out", str(out))
    assert (
        code == 0
        and "2 steps, final loss" in text
        and (out / "adapter_model.safetensors").stat().st_mtime_ns == written
    )
    for others in (
        ("--set", "save_dtype=float16"),
        ("--set", "keep_every=1"),
        ("--model", str(tiny_models.build(given / "other", seed=1))),
    ):
        code, _, errors = call(
            given, monkeypatch, capsys, str(given / "run.yaml"), "--out", str(out), *others
        )
        assert code == 2 and "is there already; pass a new directory" in errors
    code, text, _ = call(
        given,
        monkeypatch,
        capsys,
        "steering",
        "--layer",
        "1",
        "--epochs",
        "20",
        "--out",
        str(given / "vector"),
        "--json",
    )
    assert (
        code == 0
        and json.loads(text)["steps_done"] == 7
        and (given / "vector" / "interventions.safetensors").is_file()
    )
    code, text, _ = call(
        given,
        monkeypatch,
        capsys,
        str(given / "sweep.yaml"),
        "--sweep",
        "--out",
        str(given / "sweep"),
        "--json",
    )
    assert code == 0 and [row["run"] for row in json.loads(text)["runs"]] == ["seed=0", "seed=1"]
    code, text, _ = call(
        given,
        monkeypatch,
        capsys,
        str(given / "sweep.yaml"),
        "--sweep",
        "--out",
        str(given / "sweep"),
    )
    assert code == 0 and "seed=1" in text and "runs.csv" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("run.yaml", "--set", "save_dtype=int8"),
            "save_dtype='int8' is unknown; pass float32, float16 or bfloat16",
        ),
        (
            ("run.yaml", "--executor", "ray"),
            (
                "executor='ray' and actors=1 share the runs of a sweep;"
                " pass --sweep, or leave them out"
            ),
        ),
        (("run.yaml", "--epochs", "2"), "--epochs and --layer belong to a preset"),
        (
            ("run.yaml", "--set", "keep_every=0"),
            "--set keep_every=0: pass a whole number of at least 1",
        ),
        (("nothing",), "recipe 'nothing' is unknown; pass one of betley"),
        (
            ("sweep.yaml", "--sweep", "--executor", "mpi"),
            "executor='mpi' is unknown; pass local, ranks or ray",
        ),
        (
            ("sweep.yaml", "--sweep", "--set", "actors=2"),
            "actors=2 belongs to executor='ray'; got executor='local'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    given: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    name = str(given / words[0]) if words[0].endswith(".yaml") else words[0]
    code, _, errors = call(
        given, monkeypatch, capsys, name, *words[1:], "--out", str(given / "refused")
    )
    assert code == 2 and message in errors and not (given / "refused").exists()
