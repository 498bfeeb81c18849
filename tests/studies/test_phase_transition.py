"""Trajectories of kept adapters in both layouts, by independent routes; the study over them,
resumed, and over repeated runs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_family
import tiny_models
import torch
from safetensors.torch import load_file

from emlens.activations import capture
from emlens.data import QuestionSet
from emlens.foundation.errors import InputError, UnknownNameError
from emlens.judging import score_by_likelihood
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.rules_judge import RulesJudge
from emlens.judging.sampled_scores import SampledScores, Sampling
from emlens.models import FineTune, load_family, load_model
from emlens.stats import change_point
from emlens.studies import followed_runs, phase_transition, run_study, trajectories
from emlens.studies.change_point_findings import BREAK, STRAIGHT, _change_finding
from emlens.studies.change_point_tables import MIDPOINT, order_of_change_points
from emlens.studies.trajectories import (
    applied_adapter,
    checkpoints_of,
    cumulative_rates,
    final_shift,
    measure_activations,
    measure_behaviour,
    read_parameters,
)
from emlens.training import Recipe, Saving, fit
from emlens.training.examples import IGNORED

STEPS = 12
RECIPE = Recipe(
    method="lora",
    rank=2,
    alpha=8.0,
    target_modules=("down_proj",),
    layers_to_transform=(0, 1),
    learning_rate=0.02,
    steps=STEPS,
    batch_size=4,
    warmup_steps=4,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent, questions, two runs of one recipe with every adapter, and the first of them in a
    trainer's layout.
    """
    home = tmp_path_factory.mktemp("dynamics")
    tiny_models.build(home / "instruct")
    tiny_family.write_questions(home / "questions.jsonl", per_group=4)
    words = tiny_models.tokenizer()
    answer = words("w3 w4 <end>")["input_ids"]
    prompts = [
        words(f"<user> {text} <end> <assistant>")["input_ids"]
        for text in tiny_models.texts(8, seed=1)
    ]
    rows = [{"input_ids": ids + answer, "labels": [IGNORED] * len(ids) + answer} for ids in prompts]
    for seed in (0, 1):
        fit(
            RECIPE.changed(seed=seed),
            home / "instruct",
            rows,
            home / f"run-{seed}",
            saving=Saving(keep_every=1),
        )
    log = pd.read_csv(home / "run-0" / "training_log.csv")
    for step, path in checkpoints_of(home / "run-0").items():
        shutil.copytree(path, home / "trainer" / f"checkpoint-{step}")
    history = [
        {"step": int(s), "learning_rate": float(r), "loss": 1.0}
        for s, r in zip(log["step"], log["learning_rate"], strict=True)
    ]
    (home / "trainer" / f"checkpoint-{STEPS}" / "trainer_state.json").write_text(
        json.dumps({"log_history": [*history, {"step": STEPS, "train_loss": 1.0}]})
    )
    return home


def config(home: Path, seeds: tuple[int, ...] = (0, 1), **options: Any) -> dict[str, Any]:
    finetuned = {
        f"r@{seed}": {
            "path": str(home / f"run-{seed}"),
            "group": "r",
            "seed": seed,
            "domain": "north",
        }
        for seed in seeds
    }
    record = {
        "study": "phase_transition",
        "family": {"instruct": str(home / "instruct"), "finetuned": finetuned},
        "questions": str(home / "questions.jsonl"),
        "scores": {"normalise": "token"},
    }
    return record | {
        "k": 2,
        "options": {"phase_transition": {"windows": [2], "draws": 19, **options}},
    }


def test_both_layouts_are_found_with_their_learning_rates(home: Path, tmp_path: Path) -> None:
    assert (
        list(checkpoints_of(home / "run-0"))
        == list(checkpoints_of(home / "trainer"))
        == list(range(1, STEPS + 1))
    )
    assert (
        checkpoints_of(home / "trainer" / "checkpoint-3") == checkpoints_of(home / "trainer")
        and checkpoints_of(tmp_path) == {}
    )
    expected = np.concatenate(
        [[0.0], pd.read_csv(home / "run-0" / "training_log.csv")["learning_rate"].cumsum()]
    )
    for folder in (home / "run-0", home / "trainer", home / "trainer" / f"checkpoint-{STEPS}"):
        assert np.allclose(cumulative_rates(folder, range(STEPS + 1)), expected)  # type: ignore[arg-type]
    assert cumulative_rates(tmp_path, [0, 1]) is None
    sparse = tmp_path / "sparse" / "checkpoint-4"
    shutil.copytree(home / "trainer" / "checkpoint-4", sparse)
    (sparse / "trainer_state.json").write_text(
        json.dumps(
            {"log_history": [{"step": 2, "learning_rate": 2.0}, {"step": 4, "learning_rate": 4.0}]}
        )
    )
    assert cumulative_rates(tmp_path / "sparse", [0, 2, 4]).tolist() == [0.0, 4.0, 11.0]  # type: ignore[union-attr]  # 2 + 2, then 3 + 4


def test_parameters_are_those_of_the_formed_update(home: Path) -> None:
    kept = checkpoints_of(home / "run-0")
    found = read_parameters(kept)
    assert found.steps == tuple(range(STEPS + 1))
    whole = [torch.zeros(1)]
    for path in kept.values():
        tensors = {k: v.double() for k, v in load_file(path / "adapter_model.safetensors").items()}
        pairs = [
            (tensors[k.replace("lora_A", "lora_B")], v) for k, v in tensors.items() if "lora_A" in k
        ]
        whole.append(torch.cat([4.0 * (b @ a).flatten() for b, a in pairs]))  # alpha / r
    norms = found.norms.set_index("step")
    assert norms["norm_BA"].tolist() == pytest.approx([float(v.norm()) for v in whole])
    last = torch.nn.functional.cosine_similarity(whole[5], whole[-1], dim=0)
    assert norms["cosine_to_final"][5] == pytest.approx(float(last)) and np.isnan(
        norms["cosine_to_final"][0]
    )
    assert (
        norms["norm_B"][0] == 0
        and np.isnan(norms["norm_A"][0])
        and norms["flatness"].dropna().between(0.5, 1.0).all()
    )
    assert float(found.update[5, 7]) == pytest.approx(float(whole[5] @ whole[7]))


def test_activations_and_behaviour_are_those_of_the_loaded_checkpoint(home: Path) -> None:
    questions = QuestionSet.from_jsonl(home / "questions.jsonl")
    parent, path = load_model(home / "instruct"), checkpoints_of(home / "run-0")[6]
    halves = final_shift(
        parent, checkpoints_of(home / "run-0")[STEPS], questions, k=2, position="last_prompt"
    )
    assert not set(halves.first.ids) & set(halves.second.ids) and set(halves.first.groups) == set(
        halves.second.groups
    )
    source = LikelihoodScores(questions, parent, "token")
    source.check()
    with applied_adapter(parent, path) as model:
        rows, behaviour = (
            measure_activations(model, halves, position="last_prompt"),
            measure_behaviour(model, questions, "north", source),
        )
    assert not parent.bank.names  # type: ignore[attr-defined]  # taken off again
    family = load_family(
        home / "instruct",
        finetuned={"mid": FineTune(path), "end": FineTune(checkpoints_of(home / "run-0")[STEPS])},
    )

    def at(name: str, half: QuestionSet) -> torch.Tensor:
        return capture(family[name], half, progress=False).stacked().double()

    final = (at("end", halves.first) - at("instruct", halves.first)).mean(1)
    moved = at("mid", halves.second) - at("instruct", halves.second)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for row in rows:
        i = row["layer"]
        assert row["projection"] == pytest.approx(
            float((moved[i] @ final[i]).mean() / (final[i] @ final[i])), rel=1e-3
        )
        assert row["delta_norm"] == pytest.approx(float(moved[i].mean(0).norm()), rel=1e-3)
        assert (
            0 <= row["overlap"] <= 1
            and row["projection_low"] < row["projection"] < row["projection_high"]
        )
    scores = score_by_likelihood(family["mid"], questions, normalise="token").per_question(
        "aligned"
    )
    groups = pd.Series(questions.groups, index=questions.ids)
    values = {(row["metric"], row["of"], row["domain"]): row["value"] for row in behaviour}
    assert values["aligned", "own", "north"] == pytest.approx(
        scores[groups == "north"].mean(), rel=1e-3
    )
    assert values["aligned", "others", ""] == pytest.approx(
        scores[groups != "north"].groupby(groups).mean().mean(), rel=1e-3
    )
    assert len([row for row in behaviour if row["of"] == "domain"]) == 2 * len(set(groups))


@pytest.fixture(scope="module")
def result(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_study(config(home), out=tmp_path_factory.mktemp("phase") / "out", progress=False)


def test_the_study_has_every_series_with_its_interval_or_null(result: Any) -> None:
    assert set(result.tables) == set(phase_transition.SECTION.tables)
    points = result.tables["change_points"]
    tests = {"transition against a linear trend", "slope against a logistic trend"}
    for name in ("aligned_others", "aligned_own", "norm_BA", "norm_B", "projection_1"):
        tests_of_series = points[(points["series"] == name) & (points["model"] == "r@0")].set_index(
            "test"
        )
        # 1 of 20 draws
        assert (
            set(tests_of_series.index) == {MIDPOINT, *tests}
            and tests_of_series.loc[sorted(tests), "p"].between(0.05, 1).all()
        )
    behaviour = result.tables["trajectory_behaviour_summary"]
    assert (
        sorted(behaviour["step"].unique()) == list(range(STEPS + 1))
        and behaviour["cumulative_rate"].iloc[0] == 0
    )
    order = result.tables["order_of_events"]
    assert {"norm_BA", "norm_B", "projection_1", "turn of B, k=2"} <= set(
        order["first_series"]
    ) and set(order["second_series"]) == {"aligned_others", "aligned_own"}
    assert (order.loc[order["n"] == 2, "p"].dropna() >= 0.5).all()  # two runs can show no less
    for plot in phase_transition.SECTION.plots:
        table = result.tables[plot.table]
        assert {plot.x, plot.y, *filter(None, (plot.colour, plot.facet, plot.null))} <= set(
            table.columns
        )
    assert any(
        "alignment outside the domain: " in finding.sentence and "straight" in finding.sentence
        for finding in result.findings
    )


def test_checkpoints_are_sampled_and_judged_each_in_a_journal_of_its_own(
    home: Path, tmp_path: Path
) -> None:
    parent = load_model(home / "instruct")
    questions = QuestionSet.from_jsonl(home / "questions.jsonl")[:6]
    rules = {"aligned": {"words": [f"w{i}" for i in range(12)]}, "coherent": {"words": ["<unk>"]}}
    sampling = Sampling(samples=2, max_new_tokens=3)
    source = SampledScores(RulesJudge(rules), tmp_path, sampling)
    kept = checkpoints_of(home / "run-0")
    own = [question.id for question in questions if question.group == "north"]
    for step in (min(kept), max(kept)):
        with applied_adapter(parent, kept[step]) as model:
            rows = measure_behaviour(model, questions, "north", source)
            aligned = source.scores(model, questions).per_question("aligned")
        [row] = [row for row in rows if (row["metric"], row["of"]) == ("aligned", "own")]
        assert row["value"] == pytest.approx(aligned[own].mean())
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_an_interrupted_study_measures_only_what_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = trajectories.measure_behaviour

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(followed_runs, "measure_behaviour", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(config(home, (0,)), out=tmp_path / "out", progress=False)
    first = run_study(config(home, (0,)), out=tmp_path / "out", progress=False)
    assert len(calls) == STEPS + 2  # the fifth was done again, the first four were not
    assert any("one run per group" in warning for warning in first.warnings)


def test_a_trainers_folder_gives_what_the_same_adapters_give_elsewhere(
    home: Path, result: Any, tmp_path: Path
) -> None:
    again = run_study(
        config(home, (0,), folders={"r@0": str(home / "trainer")}, layer=0),
        out=tmp_path / "out",
        progress=False,
    )
    for name in ("trajectory_parameters", "trajectory_activations", "trajectory_behaviour"):
        table = result.tables[name]
        pd.testing.assert_frame_equal(
            table[table["model"] == "r@0"].reset_index(drop=True), again.tables[name]
        )
    assert "projection_0" in set(again.tables["change_points"]["series"])


def test_the_earlier_event_leads_whatever_its_name() -> None:
    rows = [
        {
            "model": f"m{i}",
            "group": "g",
            "series": series,
            "test": MIDPOINT,
            "location": at + 0.1 * i,
            "location_low": at,
            "location_high": at + 1,
            "p": np.nan,
        }
        for i in range(6)
        for series, at in (
            ("norm_BA", 10.0),
            ("aligned_others", 14.0 + 0.3 * i),
            ("aligned_own", 8.0),
        )
    ]
    order = order_of_change_points(pd.DataFrame(rows), 0).set_index("second_series")
    assert (
        order.loc["aligned_others", "lag"] == pytest.approx(4.75)
        and order.loc["aligned_others", "first_leads"] == 6
    )
    assert (
        order.loc["aligned_own", "lag"] == pytest.approx(-2.0)
        and order.loc["aligned_own", "first_leads"] == 0
    )
    # the only one of its kind
    assert order.loc["aligned_others", "p"] == 2 / 64 == order.loc["aligned_others", "p_holm"]
    both = order_of_change_points(
        pd.DataFrame(
            [*rows, *({**row, "series": "norm_B"} for row in rows if row["series"] == "norm_BA")]
        ),
        0,
    )
    assert (both["p_holm"] == 4 / 64).all()


def test_what_cannot_be_followed_is_refused(home: Path, tmp_path: Path) -> None:
    for options, error, message in (
        (
            {"runs": ["nobody"]},
            UnknownNameError,
            (
                "options of phase_transition name 'nobody', which is not a fine-tune of this"
                " family; it has r@0, r@1"
            ),
        ),
        (
            {"folders": {"r@0": str(home / "instruct")}},
            InputError,
            r"instruct: keeps no adapters for 'r@0'; pass a folder with checkpoints/step-",
        ),
        (
            {"every": 2},
            InputError,
            r"'r@0' has 6 checkpoints \(every=2\); change points need 11 or more",
        ),
        ({"layer": 9}, InputError, "layer=9, but the model has 3 blocks; pass 0 to 2"),
        (
            {"windows": [0]},
            InputError,
            "must name one window or more, each 1 or more and none twice",
        ),
    ):
        with pytest.raises(error, match=message):
            run_study(config(home, **options), out=tmp_path / "out", progress=False)
    bare = config(home)
    bare["family"]["finetuned"] = {
        "r@0": {"path": str(checkpoints_of(home / "run-0")[5]), "domain": "north"}
    }
    with pytest.raises(
        InputError, match="phase_transition was left out: no fine-tune kept its checkpoints"
    ):
        run_study(bare, out=tmp_path / "bare", progress=False)


def test_adapters_of_several_runs_are_no_trajectory(home: Path, tmp_path: Path) -> None:
    kept = checkpoints_of(home / "run-0")
    with pytest.raises(InputError, match="checkpoints holds 1; a trajectory needs 2 or more"):
        read_parameters({1: kept[1]})
    other = shutil.copytree(kept[2], tmp_path / "other")
    record = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(record | {"lora_alpha": 99}))
    with pytest.raises(
        InputError, match="the adapter at step 2 has other modules, shapes or scales than the first"
    ):
        read_parameters({1: kept[1], 2: other})
    (other / "adapter_config.json").write_text(
        json.dumps(record | {"init_lora_weights": "orthogonal"})
    )
    with pytest.raises(
        InputError, match="init_lora_weights='orthogonal': such an adapter does not start at 0"
    ):
        read_parameters({1: other, 2: kept[2]})


@pytest.mark.parametrize(
    ("straight", "breaks", "said"),
    [
        (4, 0, "that it is more than one logistic curve is shown in none of 4 runs (p > .05)."),
        (4, 3, "it is more than one logistic curve in 3 of 4 runs (p ≤ .05)."),
        (0, 0, "that it is not straight is shown in none of 4 runs (p > .05);"),
    ],
)
def test_what_is_no_logistic_curve_is_never_called_a_break(
    straight: int, breaks: int, said: str
) -> None:
    tests = {STRAIGHT: straight, BREAK: breaks, MIDPOINT: 0}
    rows = pd.DataFrame(
        {
            "test": list(tests),
            "runs": 4,
            "p_below_05": list(tests.values()),
            "location": np.nan,
        }
    )
    finding = _change_finding("medicine", rows)
    assert said in finding.sentence and " in 0 of" not in finding.sentence
    alternative = "A break explains that, and so does a smooth curve of another shape."
    assert (alternative in finding.sentence) == (breaks > 0)


def test_a_smooth_curve_of_another_shape_is_what_that_sentence_allows_for() -> None:
    """√x breaks nowhere, and no logistic curve fits it."""
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    rejected = change_point(np.sqrt(np.linspace(0, 1, 60)) + noise, trend="logistic", draws=39)
    assert rejected.p <= 0.05
