"""The paper from end to end on the tiny family: four stages, seeds side by side, resumed after a
kill to the same bytes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from emlens.foundation.errors import InputError
from emlens.models import FineTune
from emlens.probes import rank_configurations
from emlens.results.overlap_labels import CENTRED, COVARIANCE, MEANS, TESTED
from emlens.results.study_result import Part
from emlens.results.tables import check_tables
from emlens.studies import StudyConfig, StudyContext, registry, run_study, synthesis
from emlens.studies.fine_tuning import FineTuning
from emlens.studies.headlines import averaged, findings_of, headlines, side_by_side, standing
from emlens.studies.run_predictors import run_predictors

SMALL = {
    "recipe": {"own": {"rank": 2, "alpha": 4, "learning_rate": 0.02, "steps": 8, "batch_size": 8}}
}


@pytest.fixture(scope="module")
def small_study(config_path: Path) -> Path:
    """The tiny family with a study of the stages that train and gather, two seeds."""
    record = yaml.safe_load(config_path.read_text())
    record |= {"study": "small full", "focus": ["bad@0"], "positions": ["last_prompt"], "draws": 20}
    record["options"] = {
        "fine_tuning": {"seeds": [0, 1], "schedules": ["constant"], "recipes": SMALL["recipe"]}
    }
    path = config_path.with_name("small-full.yaml")
    path.write_text(yaml.safe_dump(record))
    return path


PARTS = ("profile", "fine_tuning", "delta_overlap", "synthesis")


@pytest.fixture(scope="module")
def done(small_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.COMPOSITES, "small full", PARTS)
        patch.setattr("emlens.studies.running._code", lambda study: "one code")
        out = tmp_path_factory.mktemp("full") / "out"
        return out, run_study(small_study, out, progress=False)


def contents(directory: Path) -> dict[str, bytes]:
    files = [directory / "result.json", *sorted((directory / "tables").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def test_the_four_stages_are_there_in_their_order() -> None:
    parts = registry.COMPOSITES["full"]
    order = [
        parts.index(name)
        for name in (
            "profile",
            "fine_tuning",
            "delta_overlap",
            "direction_transfer",
            "priors",
            "synthesis",
        )
    ]
    assert order == sorted(order) and parts[-1] == "synthesis"


def test_runs_are_trained_and_later_parts_study_them_seed_by_seed(done: Any) -> None:
    _, result = done
    runs = result.tables["trained_runs"].set_index("run")
    assert set(runs.index) == {
        "bad@0-constant@0",
        "bad@0-constant@1",
        "good@0-constant@0",
        "good@0-constant@1",
    }
    assert runs.loc["bad@0-constant@0", "others"] != runs.loc["bad@0-constant@1", "others"]
    assert (runs["loss"] > 0).all() and set(runs["kind"]) == {"harmful", "benign"}
    overlap = result.tables["overlap"]
    assert set(overlap["model"]) == {"bad@0-constant@0", "bad@0-constant@1"}
    assert "benign train–evaluation" in set(overlap["comparison"])
    seeds = result.tables["over_seeds"].set_index(["number", "group"])
    row = seeds.loc[("alignment outside the domain", "bad@0 own constant")]
    mine = runs.loc[["bad@0-constant@0", "bad@0-constant@1"], "others"]
    assert (
        row["mean"] == pytest.approx(mine.mean())
        and row["n"] == 2
        and row["mean_low"] < row["mean"] < row["mean_high"]
    )
    assert (
        "fewer than 3 fine-tune seeds: how much chance of training matters is not shown"
        in result.warnings
    )
    assert any("are too few to choose a configuration" in warning for warning in result.warnings)


def test_a_second_call_reuses_runs_and_lost_weights_are_trained_again_alike(
    done: Any, small_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = done
    monkeypatch.setitem(registry.COMPOSITES, "small full", PARTS)
    monkeypatch.setattr("emlens.studies.running._code", lambda study: "one code")
    before = contents(out)
    weights = next((out / "work" / "fine_tuning").rglob("*.safetensors"))
    content = weights.read_bytes()
    shutil.rmtree(out / "work")
    again = run_study(small_study, out, progress=False)
    assert again.run["parts_reused"] == ["profile", "delta_overlap", "synthesis"]
    assert contents(out) == before and weights.read_bytes() == content


@pytest.mark.slow  # the theorem is tests/studies/test_running.py's; here with training in between
def test_killed_while_it_trains_it_ends_with_the_same_bytes(
    done: Any, small_study: Path, tmp_path: Path
) -> None:
    code = (
        "from emlens.studies import registry, run_study;"
        f" registry.COMPOSITES['small full'] = {PARTS!r};"
        f" run_study({str(small_study)!r}, {str(tmp_path / 'out')!r}, progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert contents(tmp_path / "out") == contents(done[0])


def material(**changes: Any) -> Any:
    spec = type("Spec", (), {"benign": False, "parent": "instruct", "path": "nowhere"})
    family = type("Family", (), {"specs": {"bad": spec}})
    values = {
        "focus": lambda config: ["bad"],
        "training": {"bad": range(20)},
        "family": family,
        "parents": {"instruct": "."},
        **changes,
    }
    return type(
        "Material", (), {name: staticmethod(v) if callable(v) else v for name, v in values.items()}
    )


def test_without_chats_or_a_parent_on_disk_it_is_left_out(done: Any) -> None:
    study = FineTuning()

    def context(material: Any, **options: Any) -> StudyContext:
        config = StudyConfig.model_validate({"family": {"organism": "planted"}})
        return StudyContext(material, config, study.options(**options), Path("unused"))

    assert study.left_out(context(material())) is None
    assert "no harmful fine-tune in focus has training chats" in str(
        study.left_out(context(material(training={})))
    )
    assert "the parent is not a directory here" in str(
        study.left_out(context(material(parents={"instruct": "org/model"})))
    )
    for options, said in (
        ({"seeds": [1, 1]}, r"seeds=\(1, 1\) names a seed twice"),
        ({"of": ["good"]}, "of names 'good', which has no training chats; those with chats: bad"),
        ({"schedules": ["sideways"]}, "schedule='sideways'"),
    ):
        with pytest.raises(InputError, match=said):
            study.check(context(material(), **options))


def test_means_over_seeds_are_those_of_a_t_interval() -> None:
    from scipy import stats

    rows = pd.DataFrame(
        {
            "number": ["x"] * 3,
            "group": ["g"] * 3,
            "value": [1.0, 2.0, 4.0],
            "null": [0.5, 0.5, np.nan],
            "null_is": ["chance"] * 3,
            "shared_noise": [0.1] * 3,
        }
    )
    found = side_by_side(rows.assign(side="greater"), ["group"]).iloc[0]
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found["mean_low"], found["mean_high"], found["null"]) == pytest.approx((low, high, 0.5))
    assert headlines({}).empty and side_by_side(headlines({}).assign(group=""), ["group"]).empty


def numbers_of(values: list[float], nulls: list[float], **columns: Any) -> pd.DataFrame:
    n = len(values)
    fixed = {
        "number": ["x"] * n,
        "model": [f"m{i}" for i in range(n)],
        "value": values,
        "low": np.nan,
        "high": np.nan,
        "null": nulls,
    }
    return pd.DataFrame(
        fixed
        | {
            "null_is": "chance",
            "shared_noise": 0.0,
            "side": "greater",
            "seed": range(n),
            "group": "g",
            "kind": "harmful",
        }
        | columns
    )


def test_a_number_stands_beside_its_own_null_in_each_unit() -> None:
    from scipy import stats

    # the mean null is known no better than the mean
    values, nulls = [0.50, 0.505, 0.495], [0.30, 0.95, 0.85]
    row = side_by_side(numbers_of(values, nulls)).iloc[0]
    differences = np.subtract(values, nulls)
    low, high = stats.t.interval(0.95, 2, loc=differences.mean(), scale=stats.sem(differences))
    assert (row["beyond"], row["beyond_low"], row["beyond_high"]) == pytest.approx(
        (differences.mean(), low, high)
    )
    assert standing(row) == "undecided"
    # far apart, each a tenth above its own null
    together = side_by_side(numbers_of([0.2, 0.5, 0.8], [0.1, 0.4, 0.69])).iloc[0]
    assert (
        together["mean_low"] < together["null"] < together["mean_high"]
        and standing(together) == "shown"
    )


def test_what_seeds_share_is_added_to_what_they_differ_by() -> None:
    close = numbers_of([0.50, 0.51, 0.52], [0.3] * 3)
    row = side_by_side(close.assign(shared_noise=0.2)).iloc[0]
    assert row["shared_noise"] == pytest.approx(0.2) and standing(row) == "undecided"
    assert row["beyond_high"] - row["beyond_low"] == pytest.approx(2 * 1.96 * 0.2, rel=0.01)
    unknown = side_by_side(close.assign(shared_noise=np.nan))
    assert standing(unknown.iloc[0]) == "undecided"
    _, finding = findings_of(unknown, "synthesis", "seeds", ["g"])
    assert "+0.21 (what the runs share is not known, so without an interval)" in finding.sentence


def test_what_has_no_value_lends_no_null() -> None:
    row = side_by_side(numbers_of([0.5, 0.6, np.nan], [0.1, 0.2, 0.9])).iloc[0]
    assert (row["null"], row["n"]) == (pytest.approx(0.15), 2)
    two = averaged(
        numbers_of(
            [0.5, 0.7, np.nan, 0.4, 0.6], [0.1, 0.3, 0.9, 0.2, np.nan], seed=[0, 0, 0, 1, 1]
        ),
        ["seed"],
    ).set_index("seed")
    assert two["value"].tolist() == pytest.approx([0.6, 0.5])
    # half a null is none
    assert two.loc[0, "null"] == pytest.approx(0.2) and np.isnan(two.loc[1, "null"])


@pytest.mark.parametrize(
    ("values", "side", "status"),
    [
        ([0.50, 0.51, 0.52], "greater", "shown"),
        ([0.50, 0.51, 0.52], "less", "not shown"),
        ([0.10, 0.11, 0.12], "greater", "not shown"),
        ([0.10, 0.11, 0.12], "less", "shown"),
        ([0.10, 0.30, 0.52], "less", "undecided"),
        ([0.50], "greater", "undecided"),
        ([np.nan, np.nan], "greater", None),
    ],
)
def test_only_its_own_side_of_the_null_is_shown(
    values: list[float], side: str, status: str | None
) -> None:
    table = side_by_side(numbers_of(values, [0.3] * len(values), side=side))
    assert [standing(row) for row in table.to_dict(orient="records")] == (
        [] if status is None else [status]
    )
    summary, *found = findings_of(table, "synthesis", "seeds", ["g"] * len(table))
    assert [f.status for f in found] == ([] if status is None else [status])
    assert (
        f"{int(status == 'shown')} {'lies' if status == 'shown' else 'lie'} beyond"
        in summary.sentence
        and f"{int(status == 'not shown')} on the wrong side" in summary.sentence
    )


def test_every_number_says_on_which_side_of_its_null_it_speaks() -> None:
    profile = pd.DataFrame(
        {
            "model": ["instruct", "bad", "unnamed"],
            "kind": ["instruct", "harmful", "harmful"],
            "domain": [None, "medicine", None],
            "aligned_others": [90.0, 50.0, 60.0],
        }
    )
    profile = profile.assign(aligned_others_low=0.0, aligned_others_high=100.0)
    overlap = pd.DataFrame(
        {
            "model": ["bad"] * 3 + ["r1"],
            "position": "p",
            "measure": ["variance_weighted", "mean_cosine", "first_angle", "mean_cosine"],
            "answered": ["not more", "not more", "described", "identity"],
        }
    )
    overlap = overlap.assign(value=0.5, null_mean=0.3, null_q95=0.4, adapters=19)
    arms = pd.DataFrame(
        {
            "model": ["bad"] * 2,
            "role": "held out",
            "arm": ["direction", "random"],
            "control": [False, True],
            "on": "finetuned",
        }
    )
    arms = arms.assign(restoration=[0.6, 0.1], restoration_low=0.5, restoration_high=0.7)
    forecast = pd.DataFrame(
        {
            "model": ["bad"],
            "parent": "base",
            "held_out": "domain",
            "r2": 0.3,
            "r2_low": 0.2,
            "r2_high": 0.4,
            "null_q95": 0.1,
        }
    )
    tables = {"models": profile, "overlap_test": overlap, "arms": arms, "forecast": forecast}
    found = headlines(tables)
    sides = {
        "alignment outside the domain": "less",
        "alignment on all questions": "less",
        "variance-weighted overlap of shifts, mean over layers": "greater",
        "cosine of mean shifts, mean over layers": "greater",
        "restoration by the chosen direction": "greater",
        "forecast R² from base, domains held out": "greater",
    }
    assert dict(zip(found["number"], found["side"], strict=True)) == sides
    assert np.isnan(found["null"].iloc[-1])  # without an unrelated model nothing can be beaten
    rivals = pd.DataFrame(
        {
            "predictor": ["activations", "other parent", "text", "unrelated model"],
            "r2": [0.3, 0.4, 0.2, 0.35],
        }
    ).assign(model="bad", parent="base", held_out="domain")
    last = headlines({**tables, "forecast_baselines": rivals}).iloc[-1]
    # the other parent holds the same prior; shuffled scores reach .1
    assert (last["null"], last["null_is"]) == (0.35, "the strongest baseline")
    noises = dict(zip(found["number"], found["shared_noise"], strict=True))
    # of the null's draws, whose upper end lies .1 above their mean; else of the own interval
    # and 19 adapters know it a tenth less well
    adapters = noises["variance-weighted overlap of shifts, mean over layers"]
    assert adapters == pytest.approx(1.1 * 0.1 / 1.645, rel=0.01)
    assert noises["restoration by the chosen direction"] == pytest.approx(0.2 / 3.92)


def laid_beside(numbers: pd.DataFrame) -> Part:
    part = Part(tables={"numbers": numbers})
    synthesis._lay_over_seeds(part)
    return part


def test_seeds_are_seeds_of_one_kind_counted_once() -> None:
    benign = numbers_of([0.9, 0.95], [0.3, 0.3], kind="benign", model=["good0", "good1"])
    part = laid_beside(pd.concat([numbers_of([0.5, 0.6, 0.7], [0.3] * 3), benign]))
    rows = part.tables["over_seeds"].set_index("kind")
    assert rows["n"].to_dict() == {"harmful": 3, "benign": 2} and rows[
        "mean"
    ].to_dict() == pytest.approx({"harmful": 0.6, "benign": 0.925})
    assert not part.warnings and [f.sentence.split(":")[0] for f in part.findings[1:]] == [
        "g (harmful), x",
        "g (benign), x",
    ]
    twice = laid_beside(numbers_of([0.5, 0.7, 0.8], [0.3] * 3, seed=[0, 0, 1]))
    assert twice.warnings == [
        "harmful fine-tunes of group 'g' share seed 0 (m0, m1):"
        " they are averaged, not counted as seeds"
    ]
    row = twice.tables["over_seeds"].iloc[0]
    assert (row["n"], row["mean"], row["sd"]) == (
        2,
        pytest.approx(0.7),
        pytest.approx(np.std([0.6, 0.8], ddof=1)),
    )
    # one seed of each kind
    one = laid_beside(
        pd.concat(
            [
                numbers_of([0.5], [0.3]),
                numbers_of([0.9], [0.3], kind="benign", model="good", seed=1),
            ]
        )
    )
    assert one.tables["over_seeds"].empty and any(
        "no group of fine-tunes has several seeds" in warning for warning in one.warnings
    )


def test_a_familys_benign_fine_tune_is_no_seed_of_its_harmful_one() -> None:
    specs = {
        name: FineTune("nowhere", group="medicine", seed=i, benign=name == "good")
        for i, name in enumerate(("bad", "worse", "good"))
    }
    profile = pd.DataFrame(
        {
            "model": ["instruct", *specs],
            "kind": ["instruct", "harmful", "harmful", "benign"],
            "domain": [None, "medicine", "medicine", "medicine"],
            "aligned_others": [90.0, 50.0, 40.0, 91.0],
        }
    )
    profile = profile.assign(aligned_others_low=0.0, aligned_others_high=100.0)
    context: Any = SimpleNamespace(
        material=SimpleNamespace(has_models=True, family=SimpleNamespace(specs=specs)),
        config=SimpleNamespace(seed=0),
        parts={"profile": Part(tables={"models": profile})},
    )
    found = synthesis.Synthesis().run(context)
    assert found.tables["over_seeds"][["group", "kind", "n", "mean"]].to_numpy().tolist() == [
        ["medicine", "harmful", 2, 45.0]
    ]


def trained_runs(recipes: str, seeds: int = 2, sources: int = 1) -> pd.DataFrame:
    """Runs whose alignment outside the domain goes with their loss."""
    rng = np.random.default_rng(0)
    rows = []
    for source in range(sources):
        for number, recipe in enumerate(recipes):
            for seed in range(seeds):
                loss = number + source + rng.normal() / 9
                rows.append(
                    {
                        "run": f"{source}{recipe}{seed}",
                        "source": f"source {source}",
                        "cell": recipe,
                        "kind": "harmful",
                        "steps": 8,
                        "own": 50.0,
                        "loss": loss,
                        "others": 40 + 10 * loss + rng.normal() / 9,
                    }
                )
    return pd.DataFrame(rows)


def judged(runs: pd.DataFrame, **tables: pd.DataFrame) -> Part:
    part = Part()
    synthesis._judge_choosing(part, runs, tables, 0)
    return part


@pytest.fixture
def ridge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forests have tests of their own."""
    monkeypatch.setattr("emlens.probes.run_forecasts.ESTIMATORS", ("linear",))
    monkeypatch.setattr(
        synthesis, "rank_configurations", partial(rank_configurations, models=("linear",))
    )


def test_a_predictor_and_a_configuration_are_named_where_they_beat_the_mean(
    ridge_alone: None,
) -> None:
    part = judged(trained_runs("abcdefgh"))
    predictors, cost = (finding.sentence for finding in part.findings)
    assert (
        "with 8 recipes held out whole" in predictors and "loss by linear is chosen" in predictors
    )
    assert part.findings[0].status == "shown"
    assert "source 0 h has the highest mean alignment" in cost
    chosen = part.tables["choice"].set_index("by").loc["linear"]
    assert chosen["regret"] < chosen["null"]
    check_tables(part.tables, synthesis.SECTION.tables, own=True)


def test_no_predictor_is_named_where_none_beats_the_mean(ridge_alone: None) -> None:
    runs = trained_runs("abcdefgh")
    shuffled = np.random.default_rng(4).permutation(8).repeat(2)
    part = judged(runs.assign(others=shuffled + np.tile([0.0, 0.3], 8)))
    predictors, cost = (finding.sentence for finding in part.findings)
    assert "No predictor is named best." in predictors and part.findings[0].status == "not shown"
    assert "No configuration is named best" in cost


def test_few_recipes_cannot_be_judged_however_many_seeds_they_have(ridge_alone: None) -> None:
    part = judged(trained_runs("abcd", seeds=3))
    assert any(
        "cannot be judged: 12 runs are 4 recipes, whose seeds are held out together" in warning
        for warning in part.warnings
    )
    assert "predictors" not in part.tables
    assert "No configuration is named best" in part.findings[-1].sentence
    flat = judged(trained_runs("abcd", seeds=3).assign(loss=1.0))
    assert (
        flat.warnings == ["the runs do not differ in their loss: no configuration is chosen"]
        and not flat.tables
    )


def overlap_tables(names: list[str], ks: list[int]) -> dict[str, pd.DataFrame]:
    """Tables of `delta_overlap` for these runs, at two layers."""
    rows, relations = [], []
    for number, name in enumerate(names):
        for layer in (0, 1):
            place = {"model": name, "site": f"resid_post.{layer}", "position": "last_prompt"}
            tested = {**place, "comparison": TESTED, "k": ks[number % len(ks)]}
            overlap = {"center": CENTRED, "null_kind": COVARIANCE, "null_mean": 0.5}
            rows.append({**tested, **overlap, "value": 0.1 * number + layer})
            means = {"center": MEANS, "null_kind": "", "null_mean": np.nan}
            rows.append({**tested, **means, "value": 0.9 - 0.1 * number})
            relations.append({**place, "mean_overlap": float(name[0])})
    return {"overlap": pd.DataFrame(rows), "overlap_shift": pd.DataFrame(relations)}


def test_predictors_are_read_by_run_and_activations_before_only_over_fine_tunes() -> None:
    one = trained_runs("abcdefgh")
    names = list(one["run"])
    found = run_predictors(one, overlap_tables(names, [8]))
    assert found.sets == {"loss": ["loss"], "overlap of shifts": ["overlap", "cosine"]}
    assert found.units == "recipes" and found.n_units == 8
    assert found.runs.loc[names[3], "overlap"] == pytest.approx(0.3 + 0.5)  # mean of two layers
    assert any(line.startswith("activations before training: not") for line in found.missing)
    # of different k: each beside the null of its own k
    mixed = run_predictors(one, overlap_tables(names, [2, 8]))
    assert mixed.runs.loc[names[3], "overlap"] == pytest.approx(0.3)
    few = trained_runs("ab", sources=2)
    tables = overlap_tables(list(few["run"]), [8])
    said = run_predictors(few, tables).missing[-1]
    assert "and 2 were trained on: whether it forecasts cannot be judged; 8 are needed" in said
    many = trained_runs("ab", sources=8)
    found = run_predictors(many, overlap_tables(list(many["run"]), [8]))
    assert found.sets["activations before training"] == ["prompt_overlap_last_prompt"]
    assert found.units == "fine-tunes" and found.n_units == 8
