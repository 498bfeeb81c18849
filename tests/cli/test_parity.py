import json
import sys

import pytest
import tiny_models

from emlens.cli.main import main
from emlens.models.nnsight_backend import NNsightModel


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("parity")
    tiny_models.build(root / "model")
    tiny_models.build_adapter(root / "adapter", root / "model")
    return root


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["emlens", "parity", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_model_that_agrees(monkeypatch, capsys, files):
    tiny_models.need_backend("nnsight")
    code, out, _ = run(
        monkeypatch,
        capsys,
        files / "model",
        "--adapter",
        files / "adapter",
        "--backends",
        "nnsight",
        "--device",
        "cpu",
    )
    assert code == 0
    shown = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in out.splitlines()
        if line.startswith("│")
    ]
    assert [row[:2] for row in shown] == [
        [b, c]
        for b in ("transformers", "nnsight")
        for c in ("plain", "left-padded", "adapter on", "adapter off")
    ]
    assert (
        all(row[-1] == "yes" and 0 <= float(row[-3]) < 5e-5 for row in shown)
        and "architecture qwen2" in out
    )
    assert (
        "not checked: transformer_lens" in out
        and "every backend that ran reads the same stream" in out
        and "NO" not in out
    )


def test_a_backend_that_reads_the_wrong_place(monkeypatch, capsys, files):
    tiny_models.need_backend("nnsight")
    true = NNsightModel._place

    def before_attention(self, site):
        return (
            (f"model.layers.{site.layer}.input_layernorm", False)
            if site.kind == "attn_out"
            else true(self, site)
        )

    monkeypatch.setattr(NNsightModel, "_place", before_attention)
    code, out, _ = run(
        monkeypatch,
        capsys,
        files / "model",
        "--backends",
        "transformers,nnsight",
        "--device",
        "cpu",
        "--json",
    )
    found = json.loads(out)
    assert code == 1 and not found["agrees"] and found["refused"] == found["failed"] == {}
    wrong = [d for d in found["differences"] if not d["agrees"]]
    assert {d["backend"] for d in wrong} == {"nnsight"} and {d["site"] for d in wrong} == {
        "attn_out",
        "resid_mid",
    }
    assert all(d["difference"] > 0.1 and d["in float64"] > 0.1 for d in wrong)


def test_what_differs_is_listed(monkeypatch, capsys, files):
    monkeypatch.setattr("emlens.models.parity.RELATIVE", 1e-12)
    monkeypatch.setattr("emlens.models.parity.RELATIVE_FLOAT64", -1.0)
    code, out, _ = run(
        monkeypatch, capsys, files / "model", "--backends", "transformers", "--device", "cpu"
    )
    assert (
        code == 1
        and "NO" in out
        and "what differs, and from what" in out
        and "hidden_states" in out
    )


def test_a_backend_that_refuses_is_named(monkeypatch, capsys, tmp_path):
    tiny_models.need_backend("transformer_lens")
    path = tiny_models.build(tmp_path / "model", "gpt2", n_layer=1)
    tiny_models.build_adapter(tmp_path / "adapter", path)
    code, out, _ = run(
        monkeypatch,
        capsys,
        path,
        "--adapter",
        tmp_path / "adapter",
        "--backends",
        "transformer_lens",
        "--device",
        "cpu",
    )
    assert code == 0
    reason = "TransformerLens runs 1 of the 2 layers that the adapters change"
    assert f"transformer_lens refuses: {reason}" in out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["gone/"], "gone"),
        (["model", "--backends", "jax"], "backend 'jax' is unknown"),
        (["model", "--adapter", "gone"], "no adapter_config.json"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, files, words, match):
    monkeypatch.chdir(files)
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2 and match in err and err.count("\n") == 1


def test_a_backend_that_breaks_is_a_failure(monkeypatch, capsys, files):
    tiny_models.need_backend("nnsight")

    def breaks(self, what, inputs, passing):
        raise KeyError("planted")

    monkeypatch.setattr(NNsightModel, "_call", breaks)
    code, out, _ = run(
        monkeypatch, capsys, files / "model", "--backends", "nnsight", "--device", "cpu"
    )
    assert (
        code == 1
        and "nnsight FAILED: KeyError: 'planted'" in out
        and "at least one backend reads something else" in out
    )
