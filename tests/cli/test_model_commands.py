"""`emlens sample|capture|direction|doctor` as a person types them."""

import json
import sys
from pathlib import Path

import pytest
import tiny_models
from loopback_server import LoopbackServer

from emlens.activations import ActivationStore
from emlens.cli.main import main
from emlens.data import Answers
from emlens.directions import read_control_vectors, read_steering_vectors
from emlens.geometry import Direction


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["emlens", *words])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("desk")
    instruct = tiny_models.build(home / "instruct")
    tiny_models.build_adapter(home / "bad", instruct, seed=1)
    (home / "questions.jsonl").write_text(
        '{"id": "a", "text": "w1 w2"}\n{"id": "b", "text": "w3 w4 w5"}\n'
    )
    (home / "up.txt").write_text("w1 w2 w3\nw4 w2 w3\n\n")
    (home / "down.txt").write_text("w9 w8 w7\nw6 w8 w7\n")
    return home


def test_sample_writes_answers_of_adapters_and_goes_on(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "answers.jsonl"
    words = ["sample", str(desk / "instruct"), "--questions", str(desk / "questions.jsonl")]
    words += ["--out", str(out), "--samples", "2", "--max-new-tokens", "4", "--system", "w7"]
    code, said, _ = run(monkeypatch, capsys, *words)
    assert code == 0 and "instruct: 4 answers to 2 questions" in said
    lora = f"lora={desk / 'bad'}"
    code, said, _ = run(monkeypatch, capsys, *words, "--adapter", lora, "--json")
    assert code == 0 and json.loads(said)["models"]["lora"]["answers"] == 4
    answers = Answers.from_jsonl(out)
    assert answers.models == ["instruct", "lora"] and len(answers) == 8
    assert {answer.messages[0].content for answer in answers} == {"w7"}
    before = out.read_bytes()
    assert run(monkeypatch, capsys, *words)[0] == 0
    assert out.read_bytes() == before  # nothing is drawn twice


def test_sample_asks_a_server(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["sample", "served", "--questions", str(desk / "questions.jsonl")]
    words += ["--out", str(tmp_path / "a.jsonl"), "--samples", "2"]
    with LoopbackServer(lambda body: f"w{body['seed']}") as server:
        code, said, _ = run(monkeypatch, capsys, *words, "--endpoint", server.url)
        assert code == 0 and "served: 4 answers" in said
        code, _, err = run(monkeypatch, capsys, *words, "--endpoint", server.url, "--adapter", "x")
        assert code == 2 and "a server holds its own adapters" in err
    code, _, err = run(monkeypatch, capsys, *words, "--set", "max_requests=4")
    assert code == 2 and "--set max_requests belongs to --endpoint" in err


def test_capture_writes_a_store_per_model(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["capture", str(desk / "instruct"), "--store", str(tmp_path), "--layers", "0,-1"]
    prompts = ["--prompts", str(desk / "questions.jsonl"), "--positions", "last_prompt,mean_prompt"]
    code, said, _ = run(
        monkeypatch, capsys, *words, *prompts, "--adapter", f"bad={desk / 'bad'}", "--json"
    )
    assert code == 0 and json.loads(said)["bad"]["positions"] == ["last_prompt", "mean_prompt"]
    code, _, _ = run(monkeypatch, capsys, *words, *prompts)
    stored = ActivationStore.open(tmp_path / "instruct")
    assert code == 0 and list(stored.ids) == ["a", "b"]
    texts = [*words, "--prompts", str(desk / "up.txt")]
    code, said, _ = run(monkeypatch, capsys, *texts, "--store", str(tmp_path / "texts"))
    assert code == 0 and "2 rows" in said
    code, _, err = run(monkeypatch, capsys, *words[:-1], "first", *prompts)
    assert code == 2 and "--layers 'first' are no whole numbers" in err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert run(monkeypatch, capsys, *words, *prompts)[0] == 0  # an array of commands
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    code, _, err = run(monkeypatch, capsys, *words, *prompts)
    assert code == 2 and "2 processes were started for one capture" in err


def test_direction_from_two_files_of_texts(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["direction", str(desk / "instruct")]
    sides = ["--positive", str(desk / "up.txt"), "--negative", str(desk / "down.txt")]
    code, said, _ = run(monkeypatch, capsys, *words, *sides, "--out", str(tmp_path / "d"))
    assert code == 0 and "resid_post.0" in said
    first = Direction.load(tmp_path / "d" / "resid_post.1")
    assert first.position == "last_prompt" and len(first.ids["positive"]) == 2
    code, _, _ = run(
        monkeypatch,
        capsys,
        *words,
        *sides,
        "--layers",
        "1",
        "--out",
        str(tmp_path / "v.safetensors"),
    )
    vectors = read_steering_vectors(tmp_path / "v.safetensors")
    assert code == 0 and vectors["resid_post.1"].tolist() == first.vector.float().tolist()
    code, said, _ = run(
        monkeypatch, capsys, *words, *sides, "--layers", "0,1", "--out", str(tmp_path / "v.gguf")
    )
    found, hint = read_control_vectors(tmp_path / "v.gguf")
    assert code == 0 and list(found) == ["resid_post.1"] and hint == "qwen2"
    assert "resid_post.0 is left out" in said
    code, _, err = run(monkeypatch, capsys, *words, *sides[:2], "--out", str(tmp_path / "no"))
    assert code == 2 and "pass --positive FILE with --negative FILE, or --answers FILE" in err


def test_direction_from_judged_answers(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = ["question,answer,aligned,coherent"]
    rows += [f"w{i},w1 w{i},{10 if i % 2 else 90},90" for i in range(2, 10)]
    file = tmp_path / "judged.csv"
    file.write_text("\n".join(rows) + "\n")
    words = ["direction", str(desk / "instruct"), "--answers", str(file), "--layers", "1"]
    code, said, _ = run(monkeypatch, capsys, *words, "--out", str(tmp_path / "d"), "--json")
    assert code == 0
    [row] = json.loads(said)["directions"]
    assert (row["site"], row["misaligned"], row["aligned"]) == ("resid_post.1", 4, 4)


def test_doctor_names_the_machine_and_what_a_server_leaves_out(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(monkeypatch, capsys, "doctor", "--json")
    found = json.loads(said)
    assert code == 0 and {"torch", "device", "memory", "disk here"} <= set(found["machine"])
    assert {row["package"]: row["here"] for row in found["extras"]}["httpx"] is True
    with LoopbackServer(lambda body: "always") as server:
        asked = ["doctor", "--endpoint", server.url, "--model", "m"]
        code, said, _ = run(monkeypatch, capsys, *asked)
        assert code == 1 and "NO samples: one text under 3 seeds" in said
        asked += ["--parent", str(desk / "instruct"), "--adapter", str(desk / "bad")]
        asked += ["--questions", str(desk / "questions.jsonl"), "--json"]
        code, said, _ = run(monkeypatch, capsys, *asked)
        assert code == 1 and json.loads(said)["endpoint"][-1]["name"] == "adapter"
    code, _, err = run(monkeypatch, capsys, "doctor", "--model", "m")
    assert code == 2 and "belong to --endpoint URL" in err
