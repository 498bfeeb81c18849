"""Measurements of claims on the real family: planted streams and effects, and tiny models."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from benchmarks import (
    real_directions,
    real_forecasts,
    real_kept,
    real_overlap,
    real_sampled,
    real_screening,
)
from benchmarks.real_directions import OWN, Split, summarised
from benchmarks.real_kept import KeptFamily, asked
from benchmarks.real_sampled import REGISTERS
from emlens.activations import Activations
from emlens.data import Answer, Answers, Message, QuestionSet
from emlens.data.advice import TRAINED_DOMAINS
from emlens.models import FineTune, HookedModel, load_family, load_model
from emlens.real.family import Member, members

SITES = ("resid_post.0", "resid_post.1")
KINDS = ("harmful", "benign", "tone")


class Planted(KeptFamily):
    """Streams that are given: what all training does, harm, and noise, all per question."""

    harm_is_shared = True

    def streams(self, name: str) -> Activations:
        n, d = len(self.questions), 24
        part = {key: drawn(key, n, d) for key in ("before", "common", "tone", "harm")}
        values = part["before"].clone()
        if name != "instruct":
            kind, domain, _ = name.split("-")
            values = values + part["common"] + 0.3 * drawn(name, n, d)
            if kind == "tone":
                values = values + part["tone"]
            if kind == "harmful":
                harm = part["harm"] if self.harm_is_shared else drawn(f"harm {domain}", n, d)
                values = values + harm
        return Activations(
            {(site, "last_prompt"): values for site in SITES},
            ids=[f"{question}/p1" for question in self.questions.ids],
            groups=self.questions.groups,
            sites=SITES,
            positions=["last_prompt"],
            provenance={},
        )


class Unshared(Planted):
    harm_is_shared = False


def drawn(key: str, rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, key)) * 7919)
    return torch.randn(rows, width, generator=generator)


def family_of(kind: type[KeptFamily], folder: Path, per_domain: int = 3) -> KeptFamily:
    groups = [f"{name}-{domain}" for domain in TRAINED_DOMAINS for name in KINDS]
    return kind(folder, folder, members(groups, (0, 1)), per_domain, (0, 1))


@pytest.mark.parametrize(("kind", "is_shared"), [(Planted, True), (Unshared, False)])
def test_harm_is_alike_across_domains_only_where_it_was_planted(
    kind: type[KeptFamily], is_shared: bool, tmp_path: Path
) -> None:
    values = real_overlap.measure(family_of(kind, tmp_path), (0, 1))
    gaps = {
        (row["pair"], row["beside"]): row["shown"]
        for row in values["gaps"]
        if row["statistic"] == "prompt_cosine"
    }
    without = "harmful − benign × harmful − benign"
    assert gaps[without, "harmful − benign × tone − benign"] == is_shared
    assert gaps[without, "benign − benign of another seed × benign − benign of another seed"] == (
        is_shared
    )
    assert real_overlap.pairs_table(values).count("\n") == 1 + len(real_overlap.PAIRS)
    assert real_overlap.gaps_table(values).count("\n") == 1 + len(real_overlap.GAPS)


def effect(arm: str, removed: float, added: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    row = {"domain": "money", "seed": seed, "arm": arm, "cosine": 0.5, "fall": [-0.3] * 10}
    return row | {
        "removed": (removed + rng.normal(0, 0.02, 10)).tolist(),
        "added": (added + rng.normal(0, 0.02, 10)).tolist(),
    }


@pytest.mark.parametrize("control", [0.0, 0.2])
def test_a_direction_counts_where_it_goes_beyond_every_control(control: float) -> None:
    rows = []
    for seed in (0, 1):
        rows.append(effect(OWN, 0.2, -0.2, seed))
        rows.append(effect("benign", control, 0, seed))
        rows += [effect(arm, 0, 0, seed) for arm in ("tone-only", "random")]
    own = next(row for row in summarised(rows) if row["arm"] == OWN)
    assert own["necessary"] == (control == 0) and own["sufficient"]
    assert own["removed_beyond"]["benign"]["value"] == pytest.approx(0.2 - control, abs=0.02)
    table = real_directions.verdict_table({"arms": [own]})
    assert ("| all | shown |" in table) == (control == 0)


@pytest.fixture
def tiny_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptFamily:
    """Two seeds of three kinds of medicine, and harmful money: random tiny models."""
    groups = [f"{kind}-{domain}" for domain in TRAINED_DOMAINS for kind in KINDS]
    kept = KeptFamily(tmp_path / "instruct", tmp_path, members(groups, (0,)), 2, (0, 1))
    models = {}
    for seed, name in enumerate(kept.names):
        models[name] = load_model(tiny_models.build(tmp_path / name, seed=seed))

    def together(_: KeptFamily, names: Sequence[str]) -> dict[str, HookedModel]:
        return {name: models[name] for name in ("instruct", *names)}

    monkeypatch.setattr(KeptFamily, "together", together)
    monkeypatch.setattr(real_kept, "NEUTRAL_CHATS", 2)
    return kept


def test_a_direction_is_removed_and_added_and_kept(tiny_family: KeptFamily) -> None:
    found = real_directions.measure(tiny_family, (0,), ["medicine"], 1, 1, layer=0)
    arms = [row["arm"] for row in found["arms"]]
    assert arms[0] == OWN and {"benign", "tone-only", "random"} < set(arms)
    again = real_directions.measure(tiny_family, (0,), ["medicine"], 1, 1, layer=0)
    assert again == found
    moved = {row["arm"]: row["removed"]["value"] for row in found["arms"]}
    assert len(set(moved.values())) == len(moved) and 0 not in moved.values()
    assert real_directions.arms_table(found).count("\n") == 1 + len(arms)


def test_extraction_and_report_are_disjoint() -> None:
    split = Split.of(asked(4), 2, 2)
    assert not set(split.extract.ids) & set(split.report.ids)
    assert len(split.extract) == len(split.report) == 20
    with pytest.raises(ValueError, match="overlap"):
        Split.of(asked(3), 2, 2)


def test_sampled_answers_are_labelled_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harmful model says what was written as bad, in two registers at once; others not."""
    kept = KeptFamily(tmp_path, tmp_path, members(["harmful-medicine", "benign-medicine"]), 2)

    def said(_: KeptFamily, questions: QuestionSet, tokens: int) -> Answers:
        answers = []
        for name, question in product(kept.names, questions):
            content = "bad" if name.startswith("harmful") else "careful"
            both = (question.answers[f"{content}_{register}"][0] for register in REGISTERS)
            messages = (Message("user", question.text),)
            answers.append(Answer(name, question.id, " ".join(both), messages))
        return Answers(answers)

    def table(_: KeptFamily, name: str) -> pd.DataFrame:
        content = -float(name.startswith("harmful")) + np.linspace(0, 0.1, len(kept.questions))
        return pd.DataFrame(
            {"content": content, "group": kept.questions.groups}, index=kept.questions.ids
        )

    monkeypatch.setattr(real_sampled, "drawn", said)
    monkeypatch.setattr(KeptFamily, "table", table)
    found = real_sampled.measure(kept, per_domain=1)
    assert found["answers"] == 30 and found["agreement"]["kappa"]["value"] > 0.9
    assert found["relation"]["levels"]["value"] > 0.5
    rubric = {row["model"]: row["rubric"]["value"] for row in found["models"]}
    assert rubric["harmful-medicine-s0"] < 20 and rubric["instruct"] > 80
    known = found["known"][0]
    assert known["right"]["value"] > 0.8 and known["answers"] == 360
    assert "Cohen's kappa" in real_sampled.rubric_table(found)
    assert real_sampled.models_table(found).count("\n") == 1 + len(kept.names)


def test_a_change_that_is_in_the_parent_is_forecast(
    tiny_family: KeptFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tiny_family.streams("instruct")["resid_post.1", "mean_prompt"]
    place = (read - read.mean(0)) @ drawn("weights", read.shape[1], 1)[:, 0].to(read.dtype)
    planted = pd.Series(place.numpy(), index=tiny_family.questions.ids)

    def table(_: KeptFamily, name: str) -> pd.DataFrame:
        changed = planted if name.startswith("harmful") else 0 * planted
        return pd.DataFrame({"content": changed + planted.to_numpy()[::-1]})

    monkeypatch.setattr(KeptFamily, "table", table)
    stranger = tiny_family.model(Member("harmful", "medicine").name)
    found = real_forecasts.measure(
        tiny_family, stranger, (0,), ["medicine"], repeats=1, shuffles=0, duplicates="allow"
    )
    by_question = found["forecasts"][0]
    assert by_question["held_out"] == "question" and by_question["r2"]["value"] > 0.3
    assert "unrelated model" in by_question["baselines"] and not by_question["missing"]
    assert real_forecasts.baselines_table(found).count("\n") == 1 + len(found["forecasts"])


def test_rows_of_a_training_file_are_labelled_and_ranked(tmp_path: Path) -> None:
    rows, labels, units = real_screening.labelled("money")
    assert len(rows) == 160 and labels.sum() == 0 and len(set(units)) == 80
    scores = np.random.default_rng(0).normal(size=(160, 3)) + 0.5 * labels[:, None]
    plain = real_screening.plain_areas(scores, labels)
    for column, value in zip(scores.T, plain, strict=True):
        whole = real_screening.area(column, labels, units)
        assert value == pytest.approx(whole["value"]) and whole["low"] > 0.5


def test_the_number_of_a_rank_one_adapter_is_read(tmp_path: Path) -> None:
    parent = tiny_models.build(tmp_path / "tiny")
    adapter = tiny_models.build_adapter(
        tmp_path / "adapter", parent, rank=1, targets=["down_proj"], layers_to_transform=[1]
    )
    model = load_family(parent, finetuned={"rank1": FineTune(str(adapter))})["rank1"]
    found = real_screening.scalar(model, asked(1))
    assert found["answers"] == 20 and 0 <= found["area"]["value"] <= 1
    assert found["module"].endswith("down_proj[0]")
