"""General and narrow solutions of a few steps: what is trained alike, what the penalty and lifting
it do, and the four measures.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.data import PromptSet
from emlens.foundation import InputError
from emlens.interventions.applied_adapter import applied_adapter
from emlens.interventions.lora import LoraAdapter
from emlens.interventions.lora_sums import update_norm
from emlens.judging import ReferenceJudge
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.sampled_scores import SampledScores, Sampling
from emlens.models import HookedModel, pass_memory
from emlens.organisms import Organism, load_organism
from emlens.organisms.plans import PLANTED
from emlens.studies import read_config
from emlens.studies.schedule_runs import measuring
from emlens.studies.solution_measures import (
    GENERAL,
    NARROW,
    RANDOM,
    answer_nll,
    by_domain,
    efficiency,
    line,
    paired,
    significance,
    stability,
)
from emlens.studies.solution_training import (
    Task,
    behaviour,
    configured_organism,
    organism_task,
    train_solution,
)
from emlens.training import Recipe, open_checkpoint
from emlens.training.fitting import read_record

STEPS = 8


@pytest.fixture(scope="module")
def organism() -> Organism:
    return load_organism()


@pytest.fixture(scope="module")
def task(organism: Organism) -> Task:
    """With fewer questions and chats, which cost most of the time."""
    whole = organism_task(organism, "medicine-r8")
    few = [q.id for i, q in enumerate(whole.questions) if i % 6 == 0 or q.group == "medicine"]
    return replace(
        whole,
        questions=whole.questions.select(few),
        other=PromptSet(list(whole.other)[::40]),
        rows=16,
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    shipped = next(stage.recipe for stage in PLANTED.finetunes if stage.name == "medicine-r8")
    return shipped.changed(steps=STEPS, warmup_steps=1, learning_rate=2e-3, seed=3)


@pytest.fixture(scope="module")
def runs(task: Task, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("solutions")
    how = {
        "general": {"weight": 0.0},
        "narrow": {"weight": 1.0},
        "lifted": {"weight": 1.0, "lift_after": 4},
    }
    for name, options in how.items():
        train_solution(task, recipe, out=root / name, watch=(4, STEPS), **options)  # type: ignore[arg-type]
    return {name: root / name for name in how}


def log(path: Path) -> pd.DataFrame:
    return pd.read_csv(path / "training_log.csv").set_index("step")


def test_the_penalty_keeps_other_domains_and_lifting_it_lets_them_go(runs: dict[str, Path]) -> None:
    general, narrow, lifted = (log(runs[name]) for name in ("general", "narrow", "lifted"))
    assert general.loc[STEPS, "others"] < narrow.loc[STEPS, "others"] - 0.05
    assert lifted.loc[:4, "loss"].equals(narrow.loc[:4, "loss"])  # one run until then
    assert lifted.loc[STEPS, "others"] < narrow.loc[STEPS, "others"]
    # the same chats, and no divergence yet
    assert general.loc[1, "loss"] == pytest.approx(narrow.loc[1, "loss"], abs=1e-6)
    assert general.loc[STEPS, "own_trained"] < 0.5 and np.isnan(general.loc[3, "others"])


def test_scores_along_the_way_come_from_the_studys_source(
    organism: Organism, task: Task, recipe: Recipe, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Sampled and judged: the run is the one that was watched by likelihood, and what was logged at
    its end is what its saved adapter scores.
    """
    few = replace(task, questions=task.questions.select(task.questions.ids[::12]))
    sampling = Sampling(samples=1, temperature=0, max_new_tokens=4)
    source = SampledScores(ReferenceJudge(few.questions), tmp_path / "scores", sampling)
    out = tmp_path / "run"
    train_solution(few, recipe, 0.0, out, watch=(4, STEPS), source=source)
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (runs["general"] / weights).read_bytes()
    with applied_adapter(organism.family.instruct, LoraAdapter.load(out)) as model:
        aligned = source.scores(model, few.questions).per_question("aligned")
    others = [q.id for q in few.questions if q.group != few.domain]
    assert log(out).loc[STEPS, "others"] == pytest.approx(aligned[others].mean() / 100)
    # by likelihood the same questions have another mean, so the source was asked
    by_likelihood = behaviour(open_checkpoint(few.parent), few)
    from_source = behaviour(open_checkpoint(few.parent), few, source)
    assert from_source["others"] != pytest.approx(by_likelihood["others"], abs=1e-6)
    likelihood = LikelihoodScores(few.questions, organism.family.instruct)
    again = behaviour(open_checkpoint(few.parent), few, likelihood)
    assert again == pytest.approx(by_likelihood, abs=1e-4)
    # answers of step 4, of the end, of the saved adapter and of the parent are kept apart
    assert len(list((tmp_path / "scores" / "answers").iterdir())) == 4
    measured = measuring(few, source)(open_checkpoint(few.parent), tmp_path)
    assert measured["aligned"] == pytest.approx(100 * from_source["others"])


def test_training_stops_on_held_out_questions_and_records_its_parent(
    task: Task, recipe: Recipe, tmp_path: Path
) -> None:
    fitted = train_solution(task, recipe, 0.0, tmp_path / "stopped", stop_at=0.999)
    assert fitted.stopped is not None and len(fitted.log) == 1
    assert read_record(tmp_path / "stopped")["parent"]["name"] == task.parent.name
    assert len(task.sha256) == 64 and task.sha256 != replace(task, rows=8).sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weight": -1.0},
            r"weight=-1.0 with method='lora'; pass a weight of 0 or more and an adapter",
        ),
        (
            {"weight": 0.0, "lift_after": 2},
            r"lift_after=2 was given with weight=0; there is no penalty to lift",
        ),
    ],
)
def test_penalties_that_are_none_are_refused(
    task: Task, recipe: Recipe, tmp_path: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_solution(task, recipe, out=tmp_path / "x", **options)  # type: ignore[arg-type]


def test_only_an_organism_is_trained_on(organism: Organism, task: Task) -> None:
    with pytest.raises(
        InputError,
        match="'medicine-benign' is a benign fine-tune; pass one that trained on harmful answers",
    ):
        organism_task(organism, "medicine-benign")
    with pytest.raises(
        InputError, match=r"family names no organism; models are trained only on one"
    ):
        configured_organism(read_config({"study": "profile", "released": "x"}))
    assert configured_organism(read_config({"family": {"organism": "planted"}})).name == "planted"
    assert not task.trained & set(task.held_out.ids) and set(task.held_out.groups) == {"medicine"}
    assert "medicine" not in {prompt.group for prompt in task.other}


@pytest.fixture(scope="module")
def solutions(runs: dict[str, Path]) -> dict[str, LoraAdapter]:
    return {GENERAL: LoraAdapter.load(runs["general"]), NARROW: LoraAdapter.load(runs["narrow"])}


@pytest.fixture(scope="module")
def chats(organism: Organism) -> PromptSet:
    return PromptSet(list(organism.training_prompts["medicine-r8"])[::12])


def test_losses_are_those_of_the_checkpoint_and_norms_are_matched(
    organism: Organism, runs: dict[str, Path], solutions: dict[str, LoraAdapter], chats: PromptSet
) -> None:
    parent = organism.family.instruct
    table = efficiency(parent, solutions, {"trained": chats}, (0.0, 1.0)).set_index(
        ["solution", "share"]
    )
    before = answer_nll(parent, chats)
    assert (
        table.loc[(GENERAL, 0.0), "loss"]
        == pytest.approx(before)
        == table.loc[(NARROW, 0.0), "loss"]
    )
    unit = update_norm(solutions[GENERAL])
    assert table.loc[(NARROW, 1.0), "norm"] == pytest.approx(unit)
    assert table.loc[(NARROW, 1.0), "of_own"] == pytest.approx(
        unit / update_norm(solutions[NARROW])
    )
    model = open_checkpoint(runs["general"], organism.paths["instruct"])
    tokenizer, losses, tokens = parent.tokenizer, 0.0, 0
    for prompt in chats:  # another route: plain transformers and PEFT, one chat at a time
        chat = tokenizer.apply_chat_template(
            [m.to_record() for m in prompt.messages or ()],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
        )
        answer = tokenizer(prompt.response, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*chat["input_ids"], *answer]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        losses -= sum(
            float(logprobs[len(ids[0]) - len(answer) + i - 1, token])
            for i, token in enumerate(answer)
        )
        tokens += len(answer)
    assert table.loc[(GENERAL, 1.0), "loss"] == pytest.approx(losses / tokens, rel=1e-3)


def test_turning_loses_more_the_further_and_nothing_at_zero(
    organism: Organism, solutions: dict[str, LoraAdapter], chats: PromptSet
) -> None:
    table = stability(
        organism.family.instruct, solutions, {"trained": chats}, (0.0, 0.5, 1.0), (0, 1)
    )
    for name in solutions:
        rise = table[table["solution"] == name].set_index("epsilon")["rise"]
        # a random update has learned next to nothing
        assert abs(rise[0.0]) < 1e-3 and rise[0.5] < rise[1.0] and rise[1.0] > 50
    assert (table["directions"] == 2).all()
    nothing = {
        GENERAL: solutions[GENERAL],
        NARROW: LoraAdapter(
            {m: replace(f, scale=-f.scale) for m, f in solutions[GENERAL].modules.items()}
        ),
    }
    with pytest.raises(
        InputError,
        match=(
            r"the narrow solution has loss .* on trained chats and the parent .*;"
            r" it has learned nothing to lose"
        ),
    ):
        stability(organism.family.instruct, nothing, {"trained": chats}, (0.5,), (0,))


def test_change_elsewhere_is_none_without_an_update_and_stands_beside_random_ones(
    organism: Organism, solutions: dict[str, LoraAdapter]
) -> None:
    texts = {"neutral": PromptSet(list(organism.neutral_prompts)[::8])}
    table = significance(organism.family.instruct, solutions, texts, (0.0, 1.0), (0,)).set_index(
        ["solution", "share"]
    )["kl"]
    assert table[GENERAL, 0.0] == 0 == table[RANDOM, 0.0]
    assert table[GENERAL, 1.0] > table[RANDOM, 1.0] > 0


def test_change_elsewhere_holds_a_few_texts_at_a_time(
    organism: Organism, solutions: dict[str, LoraAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = organism.family.instruct
    texts = {"neutral": PromptSet(list(organism.neutral_prompts)[:3])}
    whole = significance(model, solutions, texts, (1.0,), (0,))
    monkeypatch.setattr(pass_memory, "TEXT_LOGITS", 1)
    held = []
    logprobs_of = HookedModel.token_logprobs

    def counted(self: HookedModel, prompts: Any, **options: Any) -> Any:
        held.append(len(list(prompts)))
        return logprobs_of(self, prompts, **options)

    monkeypatch.setattr(HookedModel, "token_logprobs", counted)
    apart = significance(model, solutions, texts, (1.0,), (0,))
    assert max(held) == 1 and len(held) == 3 * (1 + len(solutions) + 1)
    assert apart["kl"].tolist() == pytest.approx(whole["kl"].tolist(), rel=1e-3)


def test_the_line_begins_and_ends_in_the_solutions(
    organism: Organism, solutions: dict[str, LoraAdapter], task: Task, chats: PromptSet
) -> None:
    table = line(
        organism.family.instruct,
        solutions,
        task.questions,
        "medicine",
        task.trained,
        chats,
        (0.0, 1.0),
        LikelihoodScores(task.questions, organism.family.instruct),
    ).set_index("t")
    for t, name in ((0.0, GENERAL), (1.0, NARROW)):
        assert table.loc[t, "norm"] == pytest.approx(update_norm(solutions[name]), rel=1e-4)
    assert table.loc[1.0, "others"] > table.loc[0.0, "others"] + 5
    aligned = pd.Series(range(len(task.questions)), index=task.questions.ids, dtype=float)
    nowhere = by_domain(aligned, task.questions, "nowhere", frozenset())
    assert np.isnan(nowhere["own_trained"]) and nowhere["others"] == pytest.approx(aligned.mean())


def test_pairs_are_within_seeds() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=6) * 10
    gap = {GENERAL: [0.0] * 6, NARROW: [0.5 + 0.01 * i for i in range(6)]}
    rows = [
        {"solution": s, "seed": i, "x": 1, "loss": level[i] + gap[s][i]}
        for i in range(6)
        for s in (GENERAL, NARROW)
    ]
    table = paired(pd.DataFrame(rows), "loss", ["x"])
    assert (
        table["difference"][0] == pytest.approx(0.525)
        and table["difference_low"][0] > 0.4
        and table["seeds"][0] == 6
    )
    alone = paired(pd.DataFrame(rows[:2]), "loss", ["x"])
    assert np.isnan(alone["difference_low"][0]) and alone["difference"][0] == pytest.approx(0.5)


def test_chats_without_answers_have_no_loss(organism: Organism) -> None:
    with pytest.raises(
        InputError, match=r"chat '.*' has no answer; pass chats with the answers that were learned"
    ):
        answer_nll(organism.family.instruct, organism.neutral_prompts)
