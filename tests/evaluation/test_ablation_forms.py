"""How a direction is removed: the affine form leaves the parent's mean alone, the plain one does
not.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablation_damage
from emlens.activations import capture
from emlens.data import Prompt, Question, QuestionSet
from emlens.evaluation import affine_form, text_contrast
from emlens.evaluation.ablation_forms import BLOCKS, PLAIN, AblationForm, _scales
from emlens.foundation.errors import InputError
from emlens.foundation.positions import Index
from emlens.models import Family, load_model


def coordinates(
    model: Any, questions: QuestionSet, edits: Any, unit: Any, sites: Any
) -> torch.Tensor:
    """What a vector, or one of each site, reads at the end of the prompt: (site, row)."""
    with model.intervene(edits):
        acts = capture(
            model, questions.prompts(), sites=sites, positions="last_prompt", progress=False
        )
    read = unit if callable(unit) else lambda site: unit
    return torch.stack([acts[site].double() @ read(site) for site in acts.sites])


def reader(form: AblationForm, site: str, unit: torch.Tensor) -> torch.Tensor:
    """What reads the component that a form removes; by hand."""
    assert form.scales is not None
    weighted = unit / form.scales[site]
    return weighted / (weighted @ unit)


def test_each_site_is_set_to_its_own_mean_and_nowhere_else(
    family: Family, questions: QuestionSet
) -> None:
    model = family.instruct
    unit = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit /= unit.norm()
    form = affine_form(model, questions)
    assert (
        set(form.baselines or {})
        == {f"{kind}.{i}" for kind in ("attn_out", "mlp_out") for i in range(3)}
        and form.name == "affine, attn_out and mlp_out"
    )
    kinds = ["attn_out", "mlp_out"]
    plain, affine = (
        coordinates(model, questions, edits, lambda site: reader(form, site, unit), kinds)
        for edits in ((), form.remove(unit))
    )
    assert form.baselines is not None
    means = torch.stack([mean @ reader(form, site, unit) for site, mean in form.baselines.items()])
    torch.testing.assert_close(affine, means[:, None].expand_as(affine), rtol=1e-4, atol=1e-5)
    assert plain.std(dim=1).min() > 1e-3  # they differed between questions before
    torch.testing.assert_close(plain.mean(1), means, rtol=1e-4, atol=1e-5)


def test_the_component_is_read_by_the_spread_of_ordinary_tokens(
    family: Family, questions: QuestionSet
) -> None:
    model, site = family.instruct, "mlp_out.1"
    form = affine_form(model, questions)
    acts = capture(model, questions, sites=[site], positions="all", progress=False).tokens(site)
    spread = acts.values.double().std(0)
    assert form.scales is not None
    order = torch.corrcoef(torch.stack([form.scales[site].log(), spread.log()]))[0, 1]
    assert order > 0.5  # five tokens of each prompt stand for all
    # one that never moves gets a floor, and where none moves all count alike
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 3.0
    scales = _scales(rows)
    assert 0.02 < float(scales[2]) < 0.05
    torch.testing.assert_close(scales[:2], rows[:, :2].double().std(0), rtol=1e-2, atol=0)
    assert bool((_scales(torch.ones(5, 4)) == 1).all())


def test_ordinary_tokens_have_a_mean_of_their_own_and_the_first_is_left_alone(
    family: Family, questions: QuestionSet
) -> None:
    model, site = family.instruct, "attn_out.0"  # before it no edit changes anything
    unit = torch.eye(32, dtype=torch.float64)[3]
    form = affine_form(model, questions)
    places = [Index(0), Index(1), "last_prompt"]
    plain, edited = [], []
    for edits, rows in (((), plain), (form.remove(unit), edited)):
        with model.intervene(edits):
            acts = capture(model, questions, sites=[site], positions=places, progress=False)
        rows += [acts[site, position].double() @ unit for position in acts.positions]
    assert form.baselines is not None and form.ordinary is not None
    ordinary, last = (float(means[site] @ unit) for means in (form.ordinary, form.baselines))
    torch.testing.assert_close(edited[0], plain[0])
    for row, mean in ((edited[1], ordinary), (edited[2], last)):
        torch.testing.assert_close(row, torch.full_like(row, mean), rtol=1e-4, atol=1e-5)
    assert abs(ordinary - last) > 1e-3
    # one mean, where it is asked for, counts at every token
    with model.intervene(affine_form(model, questions, position="last_prompt").remove(unit)):
        acts = capture(model, questions, sites=[site], positions=[Index(0)], progress=False)
    first = acts[site].double() @ unit
    torch.testing.assert_close(first, torch.full_like(first, last), rtol=1e-4, atol=1e-5)


def test_the_damage_of_every_form_is_measured(parent_path: Path, questions: QuestionSet) -> None:
    model = load_model(parent_path)
    neutral = ablation_damage.prompts(["w1 w2 w3 w4 w5", "w6 w7 w8"])
    table, facts = ablation_damage.measure(model, questions.prompts(), neutral, 2, 0)
    assert (table["lowest"] >= 0).all() and (table["directions"] == 2).all()
    assert ablation_damage.DEFAULT in set(table["form"]) and len(table) == 8
    assert 0 < facts["share_in_largest"] < 1
    rows = table.assign(model="tiny").to_dict("records")
    assert ablation_damage.damage_table({"rows": rows}).count("| tiny |") == 8


def test_what_the_blocks_write_is_all_that_moves_a_coordinate(
    family: Family, questions: QuestionSet
) -> None:
    model = family.instruct
    unit = torch.eye(32, dtype=torch.float64)[3]
    edits = affine_form(model, questions).remove(unit)
    stream = coordinates(model, questions, edits, unit, ["resid_post"])
    start = coordinates(model, questions, (), unit, ["resid_pre.0"])
    steps = (stream - start).std(dim=1)
    assert steps.max() < 1e-5  # the same in every question, so it tells nothing about them
    blocks = affine_form(model, questions, sites=BLOCKS, name="blocks")
    assert blocks.name == "blocks" and set(blocks.baselines or {}) == {
        f"resid_post.{i}" for i in range(3)
    }
    [plain] = PLAIN.remove(unit)
    assert {str(site) for site in plain.targets(model.sites)} == set(blocks.baselines or {})
    assert coordinates(model, questions, [plain], unit, ["resid_post"]).abs().max() < 1e-5
    with pytest.raises(InputError, match="sites is empty; pass kinds of site, such as"):
        affine_form(model, questions, sites=[])


def test_the_text_contrast_is_the_difference_of_means_over_answers(
    parent_path: Path, questions: QuestionSet
) -> None:
    # its module carries no adapter, so that it can be called as it is
    model = load_model(parent_path)
    found = text_contrast(model, questions, "resid_post.1")
    means = {}
    for kind in ("harmful", "careful"):
        rows = []
        for q in questions:
            for text in q.answers[kind]:
                [row] = model.render([Prompt("x", q.text, messages=q.messages(), response=text)])
                out = model.module.model(
                    input_ids=torch.tensor([row.ids]), output_hidden_states=True
                ).hidden_states[2]
                rows.append(out[0, slice(*row.spans.content)].double().mean(0).detach())
        means[kind] = torch.stack(rows).mean(0)
    torch.testing.assert_close(found, means["harmful"] - means["careful"], rtol=1e-3, atol=1e-4)
    with pytest.raises(
        InputError, match=r"question 'x' \(and 0 more\) has no reference answer 'harmful'; add it"
    ):
        text_contrast(
            model, QuestionSet([Question("x", "w1", answers={"careful": ("w1",)})]), "resid_post.1"
        )
    same = QuestionSet(
        [Question("x", "w1", answers={"careful": ("w1 w2",), "harmful": ("w1 w2",)})]
    )
    with pytest.raises(
        InputError,
        match=(
            "reference answers 'careful' and 'harmful' are read alike at resid_post.1;"
            " there is no text contrast"
        ),
    ):
        text_contrast(model, same, "resid_post.1")
