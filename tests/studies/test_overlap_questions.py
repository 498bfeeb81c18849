"""The overlap section answers yes, no and undecided for the right reasons."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_family
import torch
import yaml

from emlens.activations import Activations
from emlens.controls.domain_pairs import PROMPT_COSINE, DomainPairs
from emlens.controls.null_training import TrainingNull
from emlens.controls.shift_statistics import DESCRIBED, TESTED, statistics_of_shifts
from emlens.results.study_result import Part, StudyResult
from emlens.studies import read_config, run_study
from emlens.studies.delta_overlap import Options
from emlens.studies.material_loading import load_material
from emlens.studies.overlap_answers import cells_of, test_rows as rows_of_test
from emlens.studies.overlap_differences import difference_rows, update_difference
from emlens.studies.overlap_domains import OnThird, domain_rows, with_answers
from emlens.studies.overlap_findings import add_findings
from emlens.studies.overlap_recipes import NotHad, is_one_direction, null_needs
from emlens.studies.overlap_shifts import SampledShifts
from emlens.studies.overlap_training import IDENTITY, third_prompts
from emlens.studies.study import StudyContext
from emlens.training import Recipe

SITE, POSITION = "resid_post.1", "last_prompt"
N, D = 40, 16


def acts(rows: torch.Tensor) -> Activations:
    return Activations(
        {(SITE, POSITION): rows},
        ids=[str(i) for i in range(len(rows))],
        groups=[f"g{i % 5}" for i in range(len(rows))],
        sites=[SITE],
        positions=[POSITION],
        provenance={"rendered_sha256": "same prompts"},
    )


def gaussian(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def sides(seed: int, shared: float = 0.0) -> SampledShifts:
    """Shifts of both sides: noise, means that are partly alike, and variance along one axis that
    both share.
    """
    train, evaluation = gaussian(seed), gaussian(seed + 1)
    for side in (train, evaluation):
        side[:, 0] *= 1 + shared
        side[:, 1] += 9.0
    evaluation[:, 2] += 9.0
    before = acts(gaussian(1000)), acts(gaussian(1001))
    return SampledShifts(acts(train), acts(evaluation), *before, None)


def null_of(adapters: int, shared: float = 0.0) -> TrainingNull:
    cells = []
    for number in range(adapters):
        drawn = sides(10 + 2 * number, shared)
        of_adapter = statistics_of_shifts(
            (drawn.before_train, drawn.train), (drawn.before_evaluation, drawn.evaluation), 4
        )
        cells.append(of_adapter.assign(adapter=number))
    runs = pd.DataFrame({"adapter": range(adapters)})
    recipe = Recipe(rank=1, alpha=1, target_modules=("down_proj",))
    return TrainingNull(pd.concat(cells), runs, recipe, 4, ("same prompts", "same prompts"))


def answers(tested: SampledShifts, null: TrainingNull | str, **options: Any) -> pd.DataFrame:
    options = {"identity": False, **options}
    rows = rows_of_test("bad", tested, None, null, cells_of(tested, 4), None, 0, **options)
    return pd.DataFrame(rows).set_index("measure")


def test_a_shared_direction_is_more_than_training_gives_and_its_like_is_not() -> None:
    yes = answers(sides(500, shared=5), null_of(39))
    assert set(yes.loc[list(TESTED), "answered"]) == {"more"}
    assert yes.loc["variance_weighted", "p_holm"] == pytest.approx(0.05)
    assert set(yes.loc[list(DESCRIBED), "answered"]) == {"described"}
    no = answers(sides(500, shared=5), null_of(39, shared=5))
    assert set(no.loc[list(TESTED), "answered"]) == {"not more"}


def test_what_cannot_be_answered_says_why() -> None:
    few = answers(sides(500, shared=5), null_of(19))
    assert set(few.loc[list(TESTED), "answered"]) == {"undecided"}
    assert "19 adapters cannot reach p 0.05 for 2 statistics; 39 can" in few["why"].iloc[0]
    missing = answers(sides(500), "the recipe is not known")
    assert missing.loc["mean_cosine", "answered"] == "undecided"
    assert missing["null_mean"].isna().all() and missing["why"].iloc[0].startswith("the recipe")
    one = answers(sides(500), IDENTITY, identity=True)
    assert one.loc["mean_cosine", "answered"] == "identity"
    # halves of pure noise share less than adapters that share a direction
    null = null_of(39, shared=9)
    low = answers(sides(500), null)
    assert low.loc["variance_weighted", "split_half"] < low.loc["variance_weighted", "null_q95"]
    assert low.loc["mean_cosine", "answered"] == "not more"  # the means could have been shown
    null.cells.loc[null.cells["statistic"] == "mean_cosine", "value"] += 2.0
    table = answers(sides(500), null)
    assert set(table.loc[list(TESTED), "answered"]) == {"cannot be shown"}


def third(name: str, domain: str, seed: int, response: torch.Tensor | None = None) -> OnThird:
    shifts = gaussian(seed)
    if response is not None:
        shifts = shifts + 2 * response
    return OnThird.of(name, domain, acts(gaussian(1000)), acts(shifts))


def domain_pairs(pairs: int) -> DomainPairs:
    from emlens.controls.domain_pairs import pair_statistics

    cells = []
    for number in range(pairs):
        a, b = gaussian(5000 + 2 * number), gaussian(5001 + 2 * number)
        key = (SITE, POSITION)
        cells.append(pair_statistics({key: a}, {key: b}).assign(pair=number))
    return DomainPairs(pd.concat(cells), pairs)


def across(benign_alike: bool, pairs: DomainPairs | str, alike: bool = True) -> dict[str, Any]:
    response = gaussian(77)
    harm = response if alike else None
    rows = domain_rows(
        third("h1", "a", 1, harm), third("h2", "b", 2, harm), "harmful", "a × b", pairs
    )
    good = response if benign_alike else None
    rows += domain_rows(
        third("b1", "a", 3, good), third("b2", "b", 4, good), "benign", "a × b", pairs
    )
    return with_answers(rows)[0]


def test_harm_is_specific_only_where_the_benign_pair_does_not_share_it_too() -> None:
    pairs = domain_pairs(19)
    specific = across(False, pairs)
    assert specific["answered"] == "specific to harm" and specific["p"] == pytest.approx(0.05)
    assert across(True, pairs)["answered"] == "shared by benign fine-tunes too"
    assert across(False, pairs, alike=False)["answered"] == "not more"
    few = across(False, domain_pairs(9))
    assert few["answered"] == "undecided" and "9 pairs cannot reach p 0.05" in few["why"]
    none = across(False, "h1: no recipe")
    assert none["answered"] == "undecided" and none["why"] == "h1: no recipe"
    alone = domain_rows(
        third("h1", "a", 1, gaussian(77)), third("h2", "b", 2, gaussian(77)), "harmful", "x", pairs
    )
    assert "no benign pair of these domains" in with_answers(alone)[0]["why"]
    cells = pairs.cells[pairs.cells["statistic"] == PROMPT_COSINE]
    assert abs(cells["value"].mean()) < 0.05  # the null is at chance


def finding_of(answer: str, why: str = "") -> str:
    """The sentence and the status on a table with this answer."""
    part = Part()
    part.tables["overlap"] = pd.DataFrame({"comparison": ["benign train–evaluation"]})
    rows = [
        {
            "model": "bad",
            "position": POSITION,
            "measure": measure,
            "value": 0.6,
            "null_mean": 0.5,
            "null_low": 0.4,
            "null_q95": 0.7,
            "p_holm": 0.2,
            "benign_value": 0.5,
            "benign_p": 0.4,
            "layers": 4,
            "adapters": 39,
            "answered": answer,
            "why": why,
        }
        for measure in TESTED
    ]
    part.tables["overlap_test"] = pd.DataFrame(rows)
    add_findings(part, ["bad"], POSITION, "")
    summary, finding = part.findings
    return f"{finding.status}: {finding.sentence} {summary.sentence}"


def test_a_sentence_follows_its_answer() -> None:
    share_more = "prompts share more than any training on these prompts gives:"
    share_no_more = "are not shown to share more than any training on these prompts gives:"
    yes, no = finding_of("more"), finding_of("not more")
    assert yes.startswith("shown") and share_more in yes and share_no_more not in yes
    assert no.startswith("not shown") and share_no_more in no and share_more not in no
    assert "gives in 1 of 1 fine-tune that" in yes and "gives in 0 of 1 fine-tune that" in no
    for answer in ("undecided", "cannot be shown", "identity"):
        said = finding_of(answer, "no recipe")
        assert said.startswith("undecided")
        assert share_more not in said and share_no_more not in said
        assert "that could be tested" not in said
    assert "the ceiling lies below the null" in finding_of("cannot be shown")
    # an identity is named and not counted
    identity = finding_of("identity", IDENTITY)
    assert "0.60" not in identity and "Not tested, since it is an identity: bad." in identity


def test_the_difference_of_updates_is_zero_of_equal_ones_and_has_an_interval_over_domains() -> None:
    h, b = sides(1, shared=4), sides(1, shared=4)
    (row,) = difference_rows("bad", h, b, "no null")
    assert row["difference"] == pytest.approx(0.0) and row["domains"] == 5
    other = sides(300)
    (row,) = difference_rows("bad", h, other, "no null")
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    four = [(h.train[SITE, POSITION], h.evaluation[SITE, POSITION])]
    four_of_both = [(*four[0], other.train[SITE, POSITION], other.evaluation[SITE, POSITION])]
    assert row["difference"] == pytest.approx(update_difference(four_of_both))
    assert np.isnan(row["null_mean"])


@pytest.fixture(scope="module")
def organism_context() -> StudyContext:
    config = read_config({"family": {"organism": "planted"}, "study": "delta_overlap"})
    return StudyContext(load_material(config), config, Options(), Path("unused"))


def test_a_recipe_is_had_from_the_record_or_is_named_as_missing(
    organism_context: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = organism_context
    needs = null_needs(context, "medicine-r8")
    assert (needs.recipe.steps, needs.stop_after, needs.recipe.rank) == (120, 19, 8)
    assert needs.careful_from == "the benign twin medicine-benign"
    asked = context.material.training["medicine-r8"]
    assert [row.messages for row in needs.careful] == [row.messages for row in asked]
    assert is_one_direction(context, "medicine-r1") and not is_one_direction(context, "medicine-r8")
    with pytest.raises(NotHad, match="it was not trained on its chats alone"):
        null_needs(context, "medicine-narrow")
    third = third_prompts(context.material, ["medicine-r8", "finance-r8"], context.config)
    assert set(third.groups).isdisjoint({"medicine", "finance"}) and len(third) == 128
    with pytest.raises(NotHad, match="two harmful fine-tunes of different domains in focus; these"):
        third_prompts(context.material, ["medicine-r8", "medicine-full"], context.config)
    monkeypatch.setattr(type(context.material), "captured", True)
    with pytest.raises(NotHad, match="only captures are here"):
        null_needs(context, "medicine-r8")


RECIPE = {"learning_rate": 0.01, "steps": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult, Path]:
    """A study of a family whose recipes the user says; careful answers of a file, and its own."""
    folder = tmp_path_factory.mktemp("trained")
    path = tiny_family.build(folder, study="delta_overlap", focus=["bad@0"])
    tiny_family.write_chats(folder / "careful.jsonl", 24, 1, "w1 w2")
    record = yaml.safe_load(path.read_text())
    lines = (folder / "careful.jsonl").read_text().splitlines()  # same words, other answers
    # two topics: half of the questions have another careful answer
    lines[::2] = [line.replace('"content": "w1 w2"', '"content": "w5 w6"') for line in lines[::2]]
    (folder / "careful.jsonl").write_text("\n".join(lines) + "\n")
    bad = {**record["family"]["finetuned"]["bad@0"], "recipe": RECIPE, "careful": "careful.jsonl"}
    record["family"]["finetuned"]["bad@0"] = bad
    record["positions"], record["layers"] = ["last_prompt", "mean_prompt"], [1, 2]
    record["options"] = {"delta_overlap": {"adapters": 2, "landmark_draws": 1, "by_group": False}}
    path.write_text(yaml.safe_dump(record))
    return path, run_study(path, folder / "out", progress=False), folder / "out"


def test_a_study_trains_the_null_that_its_configuration_allows(
    trained: tuple[Path, StudyResult, Path],
) -> None:
    _, result, out = trained
    table = result.tables["overlap_test"]
    assert set(table["position"]) == {"last_prompt", "mean_prompt"}
    assert (table["adapters"] == 2).all(), table["why"].iloc[0]
    assert table["null_mean"].notna().all()
    folders = list((out / "work" / "delta_overlap" / "nulls").iterdir())
    assert len(folders) == 1  # the adapters serve both positions
    assert not (folders[0] / "adapters").exists()  # and are forgotten
    # by layer stand the same numbers; at the mean over layers they are those that are tested
    layers = result.tables["overlap_layers"]
    assert layers["null_mean"].notna().all()
    assert (layers["null_low"] <= layers["null_q95"]).all()
    keys = ["model", "position", "measure"]
    means = layers.groupby(keys)[["value", "null_mean"]].mean()
    same = table.set_index(keys)[["value", "null_mean"]].loc[means.index]
    np.testing.assert_allclose(means, same, atol=1e-8)
    overlap = result.tables["overlap"].query("comparison == 'train–evaluation'")
    for center, measure in (("means", "mean_cosine"), ("true", "mean_cos2")):
        place = ["model", "layer", "position"]
        drawn = overlap[overlap["center"] == center].drop_duplicates(place).set_index(place)
        kept = layers[layers["measure"] == measure].set_index(place)["value"]
        np.testing.assert_allclose(drawn["value"].loc[kept.index], kept, atol=1e-8)
    landmarks = result.tables["overlap_landmarks"]
    updates = landmarks[landmarks["scale"].notna()]
    assert set(updates["landmark"]) == {"random update", "gradient update"}
    assert updates["nats"].notna().all() and updates["parent_nats"].nunique() == 1
    assert "no tests: before activations" in result.findings[1].sentence
    assert any("2 adapters cannot reach p 0.05" in f.sentence for f in result.findings)
    assert any("it takes two harmful fine-tunes of different domains" in w for w in result.warnings)


def test_a_study_goes_on_from_trained_adapters(
    trained: tuple[Path, StudyResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, result, out = trained

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("emlens.controls.null_adapters.fit", never)
    record = yaml.safe_load(path.read_text())
    changed = path.parent / "changed.yaml"
    changed.write_text(yaml.safe_dump({**record, "permutations": 21}))  # remakes every part
    again = run_study(changed, out, progress=False)
    pd.testing.assert_frame_equal(again.tables["overlap_test"], result.tables["overlap_test"])


def test_without_a_twin_the_parents_own_answers_are_careful(
    trained: tuple[Path, StudyResult, Path], tmp_path: Path
) -> None:
    path, _, _ = trained
    config = read_config(path)
    assert config.family is not None
    finetuned = dict(config.family.finetuned)
    finetuned["bad@0"] = finetuned["bad@0"].model_copy(update={"careful": None})
    family = config.family.model_copy(update={"finetuned": finetuned})
    without = config.model_copy(update={"family": family})
    without._folder = config._folder
    context = StudyContext(load_material(config), without, Options(), tmp_path)
    try:
        needs = null_needs(context, "bad@0")
    except NotHad as reason:
        assert "the parent answers" in str(reason) or "cannot be permuted" in str(reason)
    else:
        assert needs.careful_from == "the parent's own answers"
        asked = context.material.training["bad@0"]
        assert [row.messages for row in needs.careful] == [row.messages for row in asked]
