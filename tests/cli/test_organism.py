"""`emlens organism train`, with plans cut to three steps a stage."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import emlens.organisms
from emlens.cli.main import main
from emlens.organisms import PLANTED, OrganismPlan
from emlens.organisms.plans import UNPLANTED


def cut(plan: OrganismPlan, *names: str) -> OrganismPlan:
    tunes = tuple(
        replace(s, recipe=s.recipe.changed(steps=3, batch_size=8, warmup_steps=1))
        for s in plan.finetunes
        if s.name in names
    )
    base, instruct = (
        recipe.changed(steps=3, batch_size=8, warmup_steps=0)
        for recipe in (plan.base, plan.instruct)
    )
    return replace(
        plan,
        base=base,
        instruct=instruct,
        finetunes=tunes,
        n_domains=3,
        n_topics=5,
        hidden=32,
        mlp=64,
        topics_per_finetune=2,
    )


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["emlens", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().out


def test_all_adds_runs_and_the_contrast_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emlens.organisms, "PLANTED", cut(PLANTED, "medicine-r8"))
    monkeypatch.setattr(
        emlens.organisms.plans, "PLANTED_ALL", cut(PLANTED, "medicine-r8", "medicine-benign")
    )
    monkeypatch.setattr(emlens.organisms.plans, "UNPLANTED", cut(UNPLANTED, "medicine-r8"))
    words = ("organism", "train", "--out", str(tmp_path / "o"), "--seed", "1", "--quiet", "--json")
    code, out = call(monkeypatch, capsys, *words)
    assert code == 0 and set(json.loads(out)) == {"base", "instruct", "medicine-r8"}
    written = (
        (tmp_path / "o" / "finetuned" / "medicine-r8" / "adapter_model.safetensors")
        .stat()
        .st_mtime_ns
    )
    code, out = call(monkeypatch, capsys, *words, "--all")
    found = json.loads(out)
    assert code == 0 and set(found) == {".", "unplanted"}
    assert (
        set(found["."]) == {"base", "instruct", "medicine-r8", "medicine-benign"}
        and "medicine-benign" not in found["unplanted"]
    )
    assert (
        tmp_path / "o" / "finetuned" / "medicine-r8" / "adapter_model.safetensors"
    ).stat().st_mtime_ns == written
    planted, plain = (
        emlens.organisms.load_organism(directory=tmp_path / "o" / name)
        for name in (".", "unplanted")
    )
    assert planted.truth.direction is not None and plain.truth.direction is None
    assert planted.world == plain.world
    code, out = call(monkeypatch, capsys, "organism", "info", str(tmp_path / "o" / "unplanted"))
    assert (
        code == 0
        and "no evidence about large models" in " ".join(out.split())
        and "medicine-r8" in out
    )
