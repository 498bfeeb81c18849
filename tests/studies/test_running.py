"""A whole study on the tiny family: what it holds, that it is the same bytes again, and that nothing interrupts it for good."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError, IntegrityError, StateError
from emlens.runs import exclusive
from emlens.studies import STUDIES, Desk, StudyResult, direction_findings, run_study, running

COLUMNS: dict[str, set[str]] = {
    "models": {
        "model",
        "kind",
        "domain",
        "n_own",
        "n_others",
        "aligned_own",
        "aligned_others_low",
        "coherent_high",
        "em_rate",
        "em_rate_low",
    },
    "domains": {"model", "group", "trained_domain", "n", "aligned", "aligned_low", "aligned_high", "coherent"},
    "questions": {"model", "question", "group", "text", "trained", "aligned", "coherent"},
    "benign": {"model", "margin", "p_tost", "n", "difference", "difference_low", "difference_high"},
    "overlap": {
        "model",
        "site",
        "layer",
        "position",
        "k",
        "center",
        "measure",
        "comparison",
        "value",
        "low",
        "high",
        "null",
        "null_mean",
        "null_q95",
        "p",
        "n",
    },
    "angles": {"model", "site", "layer", "position", "comparison", "index", "degrees"},
    "shifts": {
        "model",
        "site",
        "layer",
        "position",
        "id",
        "group",
        "text",
        "prompt_overlap",
        "random_overlap",
        "cosine_to_mean_train",
        "delta_norm",
    },
    "overlap_shift": {"model", "site", "position", "pearson", "low", "high", "null_mean", "p", "partial", "n"},
    "noise_floor": {"site", "position", "noise_norm", "delta_norm", "ratio", "n"},
    "question_sets": {"question", "group", "used_to"},
    "candidates": {"model", "candidate", "site", "position", "extraction", "layer", "restoration", "coherent_change", "kl", "chosen", "n"},
    "windows": {"model", "steered", "vector", "site", "low", "high", "ended_below", "ended_above"},
    "directions": {
        "model",
        "site",
        "layer",
        "last",
        "norm",
        "split_half_cosine",
        "cosine_unembedding",
        "restoration",
        "low",
        "high",
        "coherence_loss",
        "n",
    },
    "arms": {
        "model",
        "site",
        "role",
        "arm",
        "on",
        "control",
        "draws",
        "restoration",
        "restoration_low",
        "lead",
        "lead_low",
        "aligned",
        "coherent",
        "kl",
        "n",
        "method",
    },
    "steering": {
        "model",
        "steered",
        "vector",
        "site",
        "coefficient",
        "aligned",
        "aligned_low",
        "coherent",
        "coherent_low",
        "n",
    },
    "transfer": {
        "direction_of",
        "ablated_in",
        "same_domain",
        "site",
        "cosine",
        "restoration",
        "low",
        "high",
        "strongest_control",
        "n",
        "method",
    },
    "forecast": {
        "model",
        "parent",
        "held_out",
        "r2",
        "r2_low",
        "r2_fold_mean",
        "spearman",
        "rmse",
        "null_mean",
        "null_q95",
        "p",
        "n",
        "chosen",
    },
    "forecast_baselines": {"model", "parent", "held_out", "predictor", "r2", "r2_low", "gain", "gain_low", "gain_high"},
    "forecast_sites": {"model", "parent", "held_out", "site", "position", "r2", "p_max", "null_max_95"},
    "forecast_predictions": {"model", "parent", "held_out", "id", "group", "target", "predicted", "text"},
}


def test_an_overview_holds_every_table_with_its_columns(finished: Any) -> None:
    tables = finished.result.tables
    assert set(tables) == set(COLUMNS)
    for name, columns in COLUMNS.items():
        assert columns <= set(tables[name].columns), name
        assert len(tables[name]), name
    assert {f.section for f in finished.result.findings} == {"profile", "overlap", "direction", "forecast"}
    for finding in finished.result.findings:
        assert finding.status in ("summary", "shown", "not shown", "undecided")
        assert "nan" not in finding.sentence.lower() and "None" not in finding.sentence
    assert finished.result.run["parts_reused"] == []


def test_the_tables_describe_the_family(finished: Any) -> None:
    tables = finished.result.tables
    models = tables["models"].set_index("model")
    assert models["kind"].to_dict() == {
        "instruct": "instruct",
        "base": "base",
        "bad@0": "harmful",
        "full@0": "harmful",
        "good@0": "benign",
    }
    assert models.loc["bad@0", ["n_own", "n_others"]].tolist() == [10, 50] and models.loc["instruct", "n_others"] == 60
    questions = tables["questions"]
    own = questions[(questions["model"] == "bad@0") & (questions["group"] == "north")]["aligned"].mean()
    assert models.loc["bad@0", "aligned_own"] == pytest.approx(own)
    overlap = tables["overlap"]
    assert set(overlap["comparison"]) == {
        "train–evaluation",
        "benign train–evaluation",
        "train–neutral text",
        "split-half ceiling",
    }
    landmark = overlap[overlap["null"] == "isotropic"]["null_mean"]
    np.testing.assert_allclose(landmark, 3 / 32, rtol=1e-6)  # k/d
    means = overlap[overlap["center"] == "means"]
    assert (means["low"] <= means["high"]).all() and means[["low", "high"]].abs().le(1).all(axis=None)
    last = tables["directions"].groupby("model")["last"].sum()
    assert (last == 1).all()
    chosen = tables["arms"][tables["arms"]["role"] != "last layer"]
    assert "resid_post.2" not in set(chosen["site"])
    forecast = tables["forecast_predictions"]
    assert set(forecast.loc[forecast["model"] == "bad@0", "group"]) == {"south", "east", "west", "up", "down"}
    steering = tables["steering"].groupby("steered")["coefficient"].agg(lambda doses: sorted(set(doses)))
    assert steering["instruct"] == [0, 1, 2, 4] and steering["bad@0"] == [-4, -2, -1, 0]  # added there, taken away here
    none = tables["arms"][tables["arms"]["arm"] == "no ablation"]
    assert (none["kl"] == 0).all() and (none["restoration"].dropna() == 0).all()


def test_extraction_selection_and_report_share_no_question(finished: Any) -> None:
    table = finished.result.tables["question_sets"]
    assert table["question"].is_unique and len(table) == 60
    sets = {use: set(rows["question"]) for use, rows in table.groupby("used_to")}
    assert set(sets) == {"extract", "select", "report"}
    arms = finished.result.tables["arms"]
    report = table[(table["used_to"] == "report") & (table["group"] != "north")]
    assert set(arms[arms["model"] == "bad@0"]["n"]) == {len(report)}


def contents(directory: Path) -> dict[str, bytes]:
    files = [directory / "result.json", *sorted((directory / "tables").iterdir())]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def _child(config: Path, out: Path) -> None:
    run_study(config, out, progress=False)


def test_killed_three_times_it_ends_with_the_same_bytes_in_another_process(
    finished: Any, config_path: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    out = tmp_path / "out"
    killed = 0
    for _ in range(3):
        child = multiprocessing.get_context("fork").Process(target=_child, args=(config_path, out))
        child.start()
        child.join(rng.uniform(0.05, 0.45) * finished.seconds)
        if child.is_alive():
            os.kill(int(child.pid or 0), signal.SIGKILL)
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed >= 1
    code = f"from emlens.studies import run_study; print(run_study({str(config_path)!r}, {str(out)!r}, progress=False).run['parts_reused'])"
    other = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": str(Path(run_study.__code__.co_filename).parents[2]),
    }
    subprocess.run([sys.executable, "-c", code], env=other, check=True, capture_output=True)
    assert contents(out) == contents(finished.directory)
    assert not list(out.rglob("*.part"))


def small(config_path: Path, name: str, **changes: Any) -> Path:
    """A copy of the configuration beside it; `family` and `finetuned` are merged, None takes a field out."""
    record = yaml.safe_load(config_path.read_text())
    tuned = changes.pop("finetuned", {})
    record["family"]["finetuned"] = {
        key: {**spec, **tuned.get(key, {})}
        for key, spec in record["family"]["finetuned"].items()
        if tuned.get(key, {}) is not None
    }
    record["family"].update(changes.pop("family", {}))
    record.update(changes)
    path = config_path.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


@pytest.fixture(scope="module")
def profiled(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    config = small(config_path, "profile", study="profile", family={"base": None})
    out = tmp_path_factory.mktemp("profile")
    run_study(config, out, progress=False)
    return config, out


def test_a_second_run_reuses_a_changed_table_is_found_and_a_changed_setting_recomputes(
    profiled: tuple[Path, Path], config_path: Path
) -> None:
    config, out = profiled
    before = contents(out)
    assert run_study(config, out, progress=False).run["parts_reused"] == ["profile"]
    table = out / "tables" / "models.csv"
    table.write_text(table.read_text().replace("harmful", "benign"))
    with pytest.raises(IntegrityError, match=r"models\.csv: is missing or was changed after the study wrote it"):
        StudyResult.load(out)
    again = run_study(config, out, progress=False)
    assert again.run["parts_reused"] == [] and contents(out) == before
    changed = small(config_path, "profile-seed", study="profile", family={"base": None}, seed=1)
    assert run_study(changed, out, progress=False).run["parts_reused"] == [] and contents(out) != before


def test_a_part_that_other_code_made_is_made_anew(
    profiled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = profiled
    run_study(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    assert len(running._code()) == 64 and run_study(config, tmp_path / "out", progress=False).run["parts_reused"] == ["profile"]
    monkeypatch.setattr(running, "_code", lambda: "an upgrade")
    assert run_study(config, tmp_path / "out", progress=False).run["parts_reused"] == []
    assert contents(tmp_path / "out") == before


def test_a_directory_has_one_run_and_one_study(profiled: tuple[Path, Path], config_path: Path) -> None:
    config, out = profiled
    with (
        exclusive(out),
        pytest.raises(StateError, match="another run is working in this directory; wait for it, or pass another --out"),
    ):
        run_study(config, out, progress=False)
    other = small(config_path, "overlap-here", study="delta_overlap", family={"base": None})
    before = contents(out)
    with pytest.raises(
        InputError,
        match="holds a result of study 'profile', which study 'delta_overlap' would replace; pass another --out",
    ):
        run_study(other, out, progress=False)
    assert contents(out) == before


def test_what_cannot_run_is_refused(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="study 'all' is unknown; pass one of overview, profile, delta_overlap, direction_transfer, priors",
    ):
        run_study(small(config_path, "unknown", study="all"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: is a file; pass a directory for --out"):
        run_study(config_path, tmp_path / "file")
    with pytest.raises(
        InputError,
        match=r"k=12 is above the rank that half of 24 prompts a side of 'bad@0' can carry; pass k <= 11, or more prompts",
    ):
        run_study(small(config_path, "large-k", study="delta_overlap", k=12), tmp_path / "out", progress=False)
    assert set(STUDIES["overview"]) <= set(STUDIES) - {"overview"}


def test_without_base_benign_training_and_neutral_it_runs_and_says_so(config_path: Path, tmp_path: Path) -> None:
    bare = {"bad@0": {"training": None}, "full@0": {}, "good@0": None}
    config = small(
        config_path,
        "bare",
        family={"base": None},
        finetuned=bare,
        neutral=None,
        focus=["full@0"],
        positions=["last_prompt"],
        random_directions=1,
    )
    result = run_study(config, tmp_path / "out", progress=False)
    said = "\n".join(result.warnings)
    for part in (
        "fine-tune 'bad@0' has no training prompts",
        "no base model was given",
        "no benign fine-tune was given",
        "no neutral text was given",
        "the benign control is missing from the overlap comparison: overlap beyond a benign fine-tune is not shown",
        "the arm with its direction is missing",
        "no neutral text: damage (KL) is missing",
        "no base model: forecasts from the pre-trained parent are missing",
    ):
        assert part in said
    assert set(result.tables["forecast"]["parent"]) == {"instruct"}
    assert result.tables["arms"]["kl"].isna().all() and "benign fine-tune's direction" not in set(
        result.tables["arms"]["arm"]
    )
    assert set(result.tables["overlap"]["comparison"]) == {"train–evaluation", "split-half ceiling"}
    assert not len(result.tables["benign"])
    assert all(f.status != "shown" for f in result.findings if f.section in ("overlap", "profile"))


def test_without_any_training_prompts_overlap_is_left_out_and_said(config_path: Path, tmp_path: Path) -> None:
    none = {name: {"training": None} for name in ("bad@0", "full@0", "good@0")}
    result = run_study(
        small(config_path, "untrained", study="delta_overlap", finetuned=none), tmp_path / "out", progress=False
    )
    assert not result.tables and not result.findings
    assert "no fine-tune in focus has training prompts: delta overlap was left out" in result.warnings


def test_markup_in_a_question_stays_text_and_phrasings_run_through(config_path: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (config_path.parent / "questions.jsonl").read_text().splitlines()]
    text = '<script>alert("w1")</script>\r w2'
    lines[15]["text"] = text
    lines[25]["paraphrases"] = [lines[25]["text"], "w1 w2 w3"]
    for line in lines:
        line["id"] = line["id"].replace("south/", "00")
    path = config_path.parent / "odd.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    config = small(
        config_path,
        "odd",
        study="overview",
        questions="odd.jsonl",
        family={"base": None},
        focus=["bad@0"],
        positions=["last_prompt"],
        random_directions=1,
    )
    result = run_study(config, tmp_path / "out", progress=False)
    for name, key in (("questions", "question"), ("forecast_predictions", "id")):
        table = result.tables[name]
        assert text in set(table["text"]), name
        assert set(table[table["text"] == text][key]) == {"005"}
    assert {"east/5/p1", "east/5/p2"} <= set(result.tables["forecast_predictions"]["id"])
    assert "w1 w2 w3" in set(result.tables["forecast_predictions"]["text"])


def arms_table(**changes: Any) -> pd.DataFrame:
    """Arms of one fine-tune whose direction restores .8 and whose controls restore .1."""
    base = {
        "model": "m",
        "site": "resid_post.0",
        "role": "chosen",
        "on": "finetuned",
        "control": True,
        "coherent": 90.0,
        "aligned": 50.0,
        "method": "x",
        "cosine": 0.2,
    }
    rows = []
    for arm, restoration, extra in (
        ("no ablation", 0.0, {}),
        ("direction", 0.8, {"control": False}),
        ("random", 0.1, {"restoration_max_draw": 0.2}),
        ("benign", 0.1, {}),
        ("instruct, direction", np.nan, {"on": "instruct"}),
    ):
        numbers = {
            "restoration": restoration,
            "restoration_low": restoration - 0.1,
            "restoration_high": restoration + 0.1,
        }
        lead = {"lead": 0.8 - restoration, "lead_low": 0.6 - restoration, "lead_high": 1 - restoration}
        rows.append(
            {
                **base,
                "arm": arm,
                "restoration_max_draw": np.nan,
                **numbers,
                **lead,
                **extra,
                **changes.get(arm.split(",")[0], {}),
            }
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "shown"),
        ({"random": {"restoration": 0.7, "lead_low": -0.1}}, "undecided"),  # a control that is not clearly beaten
        ({"random": {"restoration": 0.9, "lead": -0.1, "lead_low": -0.2, "lead_high": -0.01}}, "not shown"),
        ({"random": {"restoration_max_draw": 0.85}}, "undecided"),  # one random direction did as well
        ({"direction": {"restoration_low": -0.1}}, "undecided"),
        ({"direction": {"restoration": 0.02, "restoration_high": 0.08}}, "not shown"),
    ],
)
def test_a_direction_is_shown_only_where_every_control_is_beaten(changes: dict[str, Any], status: str) -> None:
    part = direction_findings.Part()
    transfer = pd.DataFrame(
        {
            "direction_of": ["m"],
            "ablated_in": ["m"],
            "restoration": [0.8],
            "low": [0.7],
            "high": [0.9],
            "strongest_control": [0.1],
        }
    )
    part.tables |= {"arms": arms_table(**changes), "transfer": transfer}
    family = type("M", (), {"domain": staticmethod(lambda name: "north")})
    direction_findings.add_findings(part, family)  # type: ignore[arg-type]
    summary, finding = part.findings
    assert summary.status == "summary" and f"every control in {int(status == 'shown')} of 1 fine-tunes" in summary.sentence
    assert finding.status == status, finding.sentence
    assert "|cosine| with it 0.20" in finding.sentence


@pytest.mark.parametrize(
    ("low", "control", "status"), [(0.3, 0.1, "shown"), (0.3, 0.35, "undecided"), (-0.1, 0.1, "undecided")]
)
def test_transfer_has_to_beat_the_controls_of_its_target(low: float, control: float, status: str) -> None:
    part = direction_findings.Part()
    rows = {
        "direction_of": ["a", "b"],
        "ablated_in": ["b", "a"],
        "restoration": [0.5] * 2,
        "low": [low] * 2,
        "high": [0.7] * 2,
        "strongest_control": [control] * 2,
    }
    part.tables |= {"arms": arms_table(), "transfer": pd.DataFrame(rows)}
    direction_findings.add_findings(part, type("M", (), {"domain": staticmethod(lambda name: "north")}))  # type: ignore[arg-type]
    assert part.findings[-1].status == status and part.findings[-1].sentence.startswith("Transfer")


def test_a_part_tells_its_whole_share_of_the_work() -> None:
    seen: list[float] = []
    ticker = Desk(seen.append, 6, Path("work"))
    for _ in range(3):
        ticker(0.25)
    ticker(0.9)  # more than is left
    ticker.finish()
    assert sum(seen) == pytest.approx(6) and time.monotonic() > 0
