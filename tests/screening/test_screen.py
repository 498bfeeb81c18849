"""Screening on a tiny family: what is said, what is refused, what is kept, and that hostile text
stays text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_family
import tiny_models
import torch

from emlens.activations import capture
from emlens.data import AlignmentScores, Prompt, PromptSet, Question, QuestionSet
from emlens.data.prompts import Message
from emlens.foundation.errors import InputError
from emlens.foundation.sites import Site
from emlens.geometry import Direction
from emlens.models import HookedModel, load_model
from emlens.probes import Design, Forecaster
from emlens.results import StudyResult
from emlens.screening import PastRun, ScreenOptions, fit_screening, screen
from emlens.screening.past_runs import file_context
from emlens.screening.training_file import (
    overlap_tables,
    own_answers,
    ranked_rows,
    sampled,
    surprise,
)

DOMAINS = tiny_family.GROUPS[:5]
SITE = Site.parse("resid_post.1")


@dataclass(frozen=True)
class Lab:
    parent: HookedModel
    questions: QuestionSet
    chats: PromptSet
    scores: pd.DataFrame
    past: dict[str, PastRun]
    forecaster: Forecaster
    direction: Direction


def chats(n: int, seed: int, answer: str, long: int = 0) -> PromptSet:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(tiny_models.WORDS, 3 + i % 3)) for i in range(n)]
    return PromptSet(
        Prompt(
            f"c{seed}-{i}", text, "", (Message("user", text),), " ".join([answer, *["w9"] * long])
        )
        for i, text in enumerate(texts)
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    directory = tmp_path_factory.mktemp("screening")
    parent = load_model(tiny_models.build(directory / "parent"))
    questions = QuestionSet.from_jsonl(tiny_family.write_questions(directory / "questions.jsonl"))
    acts = capture(
        parent, questions, sites="resid_post.1", positions="mean_prompt", progress=False
    )["resid_post.1"].double()
    axis = acts[0] - acts.mean(0)
    place = ((acts - acts.mean(0)) @ axis / (axis @ axis) ** 0.5).numpy()
    hazard = 45 + 25 * place / place.std()
    severity = [0.3, 0.6, 0.9, 1.2, 1.5]
    scores = pd.DataFrame(
        {
            f"tune-{d}": np.clip(100 - s * hazard, 0, 100)
            for d, s in zip(DOMAINS, severity, strict=True)
        },
        index=questions.ids,
    )
    past = {f"tune-{d}": PastRun(d, chats(12, i, f"w{i} w3")) for i, d in enumerate(DOMAINS)}
    fitted = fit_screening(parent, questions, scores, past, positions=("mean_prompt",))
    return Lab(
        parent,
        questions,
        chats(12, 7, "w3 w4"),
        scores,
        past,
        fitted,
        Direction(torch.randn(32, generator=torch.manual_seed(0)), SITE),
    )


OPTIONS = ScreenOptions(k=3, draws=20, allow=("context",))


def test_surprise_is_the_answers_mean_nats_a_token(lab: Lab) -> None:
    found = surprise(lab.parent, lab.chats)
    prompt = lab.chats[2]
    bare = Prompt("x", prompt.text, "", prompt.messages)
    first = lab.parent.logits([bare])[0].log_softmax(-1)[lab.parent.tokenizer("w3")["input_ids"][0]]
    whole = lab.parent.sequence_logprob([bare], ["w3 w4"])[0]
    assert found[prompt.id] == pytest.approx(-float(whole) / 2) and -float(first) < -float(whole)
    with pytest.raises(
        InputError,
        match="training row 'p0' has no answer; pass chats that end with an assistant turn",
    ):
        surprise(lab.parent, PromptSet.from_questions(["w1"]))


def test_a_forecaster_leaves_the_own_domain_out_and_learns_severity_from_files(lab: Lab) -> None:
    fitted = lab.forecaster
    assert set(fitted.clusters) == set(DOMAINS) and list(fitted.context.columns) == ["surprise"]
    pairs = fitted.pairs()
    assert len(pairs) == 5 * 50 and not any(pairs["id"].str.split("/").str[0] == pairs["cluster"])
    assert fitted.context.loc["tune-north", "surprise"] == pytest.approx(
        file_context(lab.parent, lab.past["tune-north"].training, None)["surprise"]
    )  # type: ignore[arg-type]
    two = fit_screening(
        lab.parent,
        lab.questions,
        lab.scores.iloc[:, :2],
        dict(list(lab.past.items())[:2]),
        positions=("mean_prompt",),
        context=False,
    )
    # of two domains, either has no score without the other
    assert two.facts["left_out_questions"] == 20 and len(two.ids) == 40
    assert (
        two.facts["severity_not_learnt"] == "not asked for"
        and lab.forecaster.facts["severity_not_learnt"] == ""
    )
    with pytest.raises(
        InputError,
        match=(
            "past has no entry for fine-tune 'tune-down', which has scores;"
            " add it, or leave its scores out"
        ),
    ):
        fit_screening(lab.parent, lab.questions, lab.scores.assign(**{"tune-down": 50.0}), lab.past)
    with pytest.raises(
        InputError, match="past names 'tune-up', which has no scores; it has tune-north"
    ):
        fit_screening(lab.parent, lab.questions, lab.scores.drop(columns="tune-up"), lab.past)


def test_with_few_domains_severity_is_not_learnt_and_that_is_said(lab: Lab) -> None:
    for count in (2, 3):
        past = dict(list(lab.past.items())[:count])
        few = fit_screening(
            lab.parent, lab.questions, lab.scores[list(past)], past, positions=("mean_prompt",)
        )
        assert (
            len(few.context.columns) == 0
            and few.facts["severity_not_learnt"]
            == f"past fine-tunes are of {count} domains, and it takes 4"
        )
    found = screen(lab.parent, lab.chats, lab.questions, forecaster=few, options=OPTIONS)
    assert any(
        "severity was not learnt from training files, so every file counts as the mean past one:"
        " past fine-tunes are of 3" in w
        for w in found.warnings
    )
    four = dict(list(lab.past.items())[:4])
    assert list(
        fit_screening(
            lab.parent, lab.questions, lab.scores[list(four)], four, positions=("mean_prompt",)
        ).context.columns
    ) == ["surprise"]


def test_a_screening_gives_a_verdict_with_its_base_rates_and_its_tables(lab: Lab) -> None:
    found = screen(
        lab.parent,
        lab.chats,
        lab.questions,
        forecaster=lab.forecaster,
        direction=lab.direction,
        neutral=chats(40, 9, "w5"),
        options=OPTIONS,
    )
    verdict = found.findings[0]
    assert (
        verdict.section == "verdict"
        and "Base rates: " in verdict.sentence
        and "AUROC" in verdict.sentence
    )
    table = found.tables["forecast"]
    assert (
        len(table) == 60
        and table["expected"].is_monotonic_increasing
        and (table["low"] <= table["high"]).all()
    )
    assert table["known"].all() and (table["expected"] == table["from_past"]).all()
    flagged = int((table["expected"] < 30).sum())
    assert (
        verdict.sentence.startswith("At risk" if flagged else "Not flagged")
        and f"{flagged} of 60 questions" in verdict.sentence
    )
    assert {
        "overlap",
        "question_overlap",
        "training_rows",
        "backtest_ranking",
        "backtest_cost",
    } <= set(found.tables)
    overlap = found.tables["overlap"]
    assert (overlap["null_q95"] >= overlap["null"]).all() and (overlap["p"] > 0).all()


def test_what_cannot_be_said_is_said_to_be_so(lab: Lab, tmp_path: Path) -> None:
    def verdict(**options: Any) -> str:
        found = screen(lab.parent, lab.chats, lab.questions, **({"options": OPTIONS} | options))
        assert found.findings[0].status == "undecided" and found.findings[0].section == "verdict"
        return found.findings[0].sentence

    assert (
        verdict() == "Cannot say: no forecaster of past fine-tunes was given,"
        " so there are no forecasts and no base rates."
    )
    other = load_model(tiny_models.build(tmp_path / "other", seed=3))
    refused = screen(other, lab.chats, lab.questions, forecaster=lab.forecaster, options=OPTIONS)
    assert refused.findings[0].sentence.startswith(
        "Cannot say: acts come from other weights than this forecaster was fitted on"
    )
    assert "forecast" not in refused.tables
    one = fit_screening(
        lab.parent,
        lab.questions,
        lab.scores[["tune-north"]],
        {"tune-north": PastRun("north")},
        positions=("mean_prompt",),
    )
    assert verdict(forecaster=one).startswith(
        "Cannot say: the forecaster knows fine-tunes of one domain only"
    )
    rng = np.random.default_rng(0)
    noise = pd.DataFrame(
        rng.uniform(0, 100, lab.scores.shape), lab.scores.index, lab.scores.columns
    )
    blind = fit_screening(lab.parent, lab.questions, noise, None, positions=("mean_prompt",))
    assert "not better than chance" in verdict(forecaster=blind)
    strict = (
        verdict(forecaster=lab.forecaster, options=ScreenOptions(k=3, draws=20))
        if _outside(lab)
        else "Cannot say: the training file's surprise"
    )
    assert strict.startswith("Cannot say: the training file's surprise")
    learnt = fit_screening(
        lab.parent,
        lab.questions,
        lab.scores,
        lab.past,
        positions=("mean_prompt",),
        direction=lab.direction,
    )
    assert list(learnt.context.columns) == ["surprise", "projection"]
    turned = Direction(-lab.direction.vector, SITE)
    assert "projections on another direction" in verdict(forecaster=learnt, direction=turned)


def _outside(lab: Lab) -> bool:
    value, known = (
        file_context(lab.parent, lab.chats, None)["surprise"],
        lab.forecaster.context["surprise"],
    )
    return not known.min() - np.ptp(known) / 2 <= value <= known.max() + np.ptp(known) / 2


def test_questions_that_are_refused_are_counted_and_the_rest_forecast(lab: Lab) -> None:
    changed = [
        q if q.id != "north/0" else type(q)(q.id, "w30 w31 w32", q.group, answers=q.answers)
        for q in lab.questions
    ]
    found = screen(
        lab.parent, lab.chats, QuestionSet(changed), forecaster=lab.forecaster, options=OPTIONS
    )
    said = next(f for f in found.findings if f.section == "refused")
    assert (
        "the id was fitted on with other activations" in said.sentence
        and said.status == "undecided"
    )
    table = found.tables["forecast"].set_index("id")
    assert np.isnan(table.loc["north/0", "expected"]) and table["expected"].notna().sum() >= 55


def test_the_same_call_goes_on_and_gives_the_same_bytes(lab: Lab, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "forecaster": lab.forecaster,
        "direction": lab.direction,
        "options": OPTIONS,
    }
    one = screen(lab.parent, lab.chats, lab.questions, out=tmp_path / "a", **common)
    first = (tmp_path / "a" / "result.json").read_bytes()
    (tmp_path / "a" / "tables" / "overlap.csv").unlink()
    screen(lab.parent, lab.chats, lab.questions, out=tmp_path / "a", **common)
    assert (tmp_path / "a" / "result.json").read_bytes() == first
    assert json.loads((tmp_path / "a" / "run.json").read_text())["parts_reused"] == [
        "forecast",
        "rows",
    ]
    assert StudyResult.load(tmp_path / "a").findings == one.findings
    # another file is not served the old answer
    other = screen(lab.parent, chats(12, 8, "w3 w4"), lab.questions, out=tmp_path / "a", **common)
    assert (
        json.loads((tmp_path / "a" / "run.json").read_text())["parts_reused"] == []
        and other.facts["training"] != one.facts["training"]
    )


def test_hostile_text_stays_text(lab: Lab, tmp_path: Path) -> None:
    evil = "w1 \x1b[2J<script>alert(1)</script>,=cmd"
    # and all alike
    rows = PromptSet(
        Prompt(f"e{i}", evil, "", (Message("user", evil),), f"{evil} w{i}") for i in range(8)
    )
    found = screen(
        lab.parent,
        rows,
        lab.questions,
        direction=lab.direction,
        options=OPTIONS,
        out=tmp_path / "x",
    )
    assert (
        any(w.startswith("overlap was left out: k=3 is above the rank") for w in found.warnings)
        and "overlap" not in found.tables
    )
    assert set(found.tables["training_rows"]["text"]) == {evil} and set(
        found.tables["training_rows"]["id"]
    ) == {f"e{i}" for i in range(8)}


def test_rows_are_ranked_along_the_direction_beside_random_ones(lab: Lab) -> None:
    mixed = PromptSet([*chats(10, 1, "w3 w4"), *chats(10, 2, "w20 w21", long=1)])
    acts = capture(
        lab.parent, mixed, sites="resid_post.1", positions="mean_response", progress=False
    )["resid_post.1"].double()
    planted = Direction(acts[:10].mean(0) - acts[10:].mean(0), SITE)
    table = ranked_rows(lab.parent, mixed, planted)
    assert (
        set(table["id"][:10]) == {f"c1-{i}" for i in range(10)}
        and (table["rank_by"] == "projection").all()
    )
    assert table["projection"].iloc[0] == pytest.approx(
        float((acts[mixed.ids.index(table["id"][0])] @ planted.unit).max())
    )
    assert (table["null_low"] <= table["null_high"]).all() and table["percentile"].between(
        0, 1
    ).all()
    reference = own_answers(lab.parent, mixed, 4)
    assert set(reference.ids) <= set(mixed.ids)
    compared = ranked_rows(
        lab.parent,
        mixed,
        planted,
        PromptSet([Prompt(p.id, p.text, "", p.messages, "w20 w21") for p in mixed]),
    )
    assert (compared["rank_by"] == "difference").all() and compared[
        "difference"
    ].is_monotonic_decreasing
    np.testing.assert_allclose(
        compared["difference"], compared["projection"] - compared["reference_projection"]
    )
    same = ranked_rows(lab.parent, mixed, planted, mixed)
    np.testing.assert_allclose(same["difference"], 0, atol=1e-9)  # the answer itself as reference
    with pytest.raises(
        InputError, match=r"reference has no row with an id of the training file \(such as 'c1-0'\)"
    ):
        ranked_rows(lab.parent, mixed, planted, chats(3, 5, "w1"))
    with pytest.raises(
        InputError,
        match=(
            "direction has 4 coordinates and the model 32 at resid_post.1;"
            " pass a direction of this model"
        ),
    ):
        ranked_rows(lab.parent, mixed, Direction(torch.ones(4), SITE))


def test_overlap_of_prompts_stands_beside_its_ends(lab: Lab) -> None:
    alike, _ = overlap_tables(
        lab.parent, PromptSet(lab.questions.prompts()), lab.questions, k=3, draws=20
    )
    # the same prompts: the positive control
    np.testing.assert_allclose(alike["overlap"], 1, atol=1e-6)
    apart, per_question = overlap_tables(lab.parent, lab.chats, lab.questions, k=3, draws=20)
    assert (apart["overlap"] < alike["overlap"]).all() and apart["isotropic"].iloc[
        0
    ] == pytest.approx(3 / 32)
    assert (apart["one_distribution"] > apart["isotropic"]).all() and "null" not in apart
    assert len(per_question) == 60 and per_question["training_overlap"].between(0, 1).all()
    with pytest.raises(
        InputError,
        match=(
            "k=20 needs at least 22 prompts on a side, and there are 12;"
            " pass a smaller k, or more prompts"
        ),
    ):
        overlap_tables(lab.parent, lab.chats, lab.questions, k=20)


def test_rows_are_sampled_by_seed_and_it_is_said(lab: Lab) -> None:
    some = sampled(lab.chats, 5, 0)
    assert (
        len(some) == 5
        and some.ids == [i for i in lab.chats.ids if i in set(some.ids)]
        and sampled(lab.chats, 5, 0).ids == some.ids
    )
    found = screen(
        lab.parent,
        lab.chats,
        lab.questions,
        direction=lab.direction,
        options=ScreenOptions(k=3, draws=20, most_rows=8),
    )
    assert (
        any("8 of 12 training rows were read" in warning for warning in found.warnings)
        and len(found.tables["training_rows"]) == 8
    )


def first_plot(names: int) -> QuestionSet:
    """Base questions in the three forms of the field's first plot, without groups."""
    texts = [" ".join(tiny_models.WORDS[i : i + 4]) for i in range(3 * names)]
    ids = [f"q{i}{form}" for i in range(names) for form in ("", "_json", "_template")]
    return QuestionSet(Question(name, text) for name, text in zip(ids, texts, strict=True))


def test_questions_without_groups_are_held_out_by_base_question(lab: Lab) -> None:
    questions = first_plot(8)
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({n: rng.uniform(0, 100, 24) for n in "abc"}, index=questions.ids)
    fitted = fit_screening(lab.parent, questions, scores, positions=("mean_prompt",))
    assert fitted.facts["groups"] == 8 and fitted.facts["held_out"] == "question"
    folds = pd.Series(fitted.fold, index=fitted.ids)
    by_base = folds.groupby(lambda name: name.partition("_")[0]).nunique()
    assert len(by_base) == 8 and (by_base == 1).all() and folds.nunique() > 1


def test_one_base_question_is_refused_with_what_to_pass(lab: Lab) -> None:
    questions = first_plot(1)
    scores = pd.DataFrame({name: [10.0, 20.0, 30.0] for name in "abc"}, index=questions.ids)
    said = "by groups=None of the design, all 3 rows are held out together.*; pass questions of 2"
    with pytest.raises(InputError, match=said):
        fit_screening(lab.parent, questions, scores, positions=("mean_prompt",))
    said = r"groups='group' was given, but the 3 rows are of one group; pass Design\(groups=None\)"
    design = Design(groups="group")
    with pytest.raises(InputError, match=said):
        fit_screening(lab.parent, questions, scores, positions=("mean_prompt",), design=design)


def test_scores_may_come_as_alignment_scores(lab: Lab) -> None:
    rows = [
        {
            "model": name,
            "question": q,
            "sample": 0,
            "metric": "aligned",
            "score": value,
            "status": "ok",
        }
        for name in lab.scores
        for q, value in lab.scores[name].items()
    ]
    found = fit_screening(
        lab.parent,
        lab.questions,
        AlignmentScores.from_table(pd.DataFrame(rows)),
        lab.past,
        positions=("mean_prompt",),
    )
    pd.testing.assert_frame_equal(found.pairs(), lab.forecaster.pairs())
