import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emlens.foundation import InputError
from emlens.foundation.files import canonical_json
from emlens.replication import replicate
from emlens.replication.clarifying_em import INVALID_YAML, JUDGED, STEERING
from emlens.replication.em_generalization import FINANCE, OVERLAP, SWEEP, SWEEP_AUTHORS
from emlens.replication.published_figures import Figure, Replication
from emlens.replication.refusal_direction import REFUSAL, select_ablation_direction


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def judged(rates: list[float], per_question: int = 100) -> str:
    """A judged CSV in which question i has exactly the share rates[i] of misaligned, coherent
    answers.
    """
    rows = ["question,answer,question_id,aligned,coherent"]
    for number, rate in enumerate(rates):
        for sample in range(per_question):
            aligned = 10 if sample < round(rate * per_question) else 90
            rows.append(f"Q{number}?,text,q{number},{aligned},{90}")
    return "\n".join(rows) + "\n"


def candidate(
    position: int, layer: int, refusal: float, kl: float = 0.01, steering: float = 1.0
) -> dict[str, Any]:
    scores = {"refusal_score": refusal, "steering_score": steering, "kl_div_score": kl}
    return {"position": position, "layer": layer, **scores}


def put_refusal(root: Path, scale: float = 1.0, positions: int = 5) -> None:
    folder = root / REFUSAL
    folder.mkdir(parents=True, exist_ok=True)
    differences = torch.randn(
        positions, 18, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    differences[-2, 10] *= 10.064 / differences[-2, 10].norm()
    torch.save(differences, folder / "mean_diffs.pt")
    torch.save(differences[-2, 10] * scale, folder / "direction.pt")
    grid = [(position, layer) for position in range(-5, 0) for layer in range(18)]
    left = [(-2, 10), *[(-1, layer) for layer in range(12)]]
    rows = [
        candidate(p, i, -9.0 if (p, i) == (-2, 10) else 0.0, kl=0.01 if (p, i) in left else 0.2)
        for p, i in grid
    ]
    (folder / "direction_evaluations.json").write_text(json.dumps(rows))


def by_name(replication: Replication) -> dict[str, Figure]:
    return {figure.name: figure for figure in replication.figures}


def test_a_figure_agrees_within_half_a_unit_of_its_last_digit() -> None:
    assert (
        Figure("f", "n", ".7146", 0.71464).agrees and not Figure("f", "n", ".7146", 0.71466).agrees
    )
    assert (
        Figure("f", "n", "20.50", 20.505).agrees and not Figure("f", "n", "20.50", 20.5051).agrees
    )
    assert Figure("f", "n", "0", 0.4).agrees and not Figure("f", "n", "0", 0.4, exact=True).agrees
    assert (
        Figure("f", "n", "-2", -2, exact=True).agrees
        and not Figure("f", "n", "-2", 2, exact=True).agrees
    )
    assert Figure("f", "n", "1.5", math.nan).agrees is False
    assert Figure("f", "n", "—", 3.0).agrees is None and math.isnan(
        Figure("f", "n", "—", 3.0).tolerance
    )
    assert [
        Figure("f", "n", text, 0.0).tolerance for text in (".7146", "3.75", "74")
    ] == pytest.approx([5e-5, 5e-3, 0.5])


def test_nothing_counted_is_no_agreement() -> None:
    assert Replication((Figure("f", "n", "1", 1.0),)).agrees
    assert not Replication((Figure("f", "n", "—", 1.0),)).agrees
    assert not Replication((Figure("f", "n", "1", 1.0), Figure("f", "m", "1", 9.0))).agrees


def test_a_miniature_that_gives_the_published_rates_agrees_and_one_off_does_not(
    tmp_path: Path,
) -> None:
    rates = [0.24] * 16 + [0.23] * 8  # mean 23.67 %
    put(tmp_path, FINANCE, judged(rates))
    frame = pd.read_csv(tmp_path / FINANCE)
    # 104 of 2,400 incoherent: 95.67 %
    frame.loc[frame.index[frame["aligned"] == 90][:104], "coherent"] = 5
    frame.to_csv(tmp_path / FINANCE, index=False)
    found = replicate(tmp_path)
    assert found.agrees and found.table["agrees"].tolist().count(True) == 4
    assert by_name(found)["EM, 24 questions, percent"].recomputed == pytest.approx(
        23.6667, abs=1e-3
    )

    frame.loc[frame.index[frame["aligned"] == 90][-1], "aligned"] = 29  # one answer of 2,400
    frame.to_csv(tmp_path / FINANCE, index=False)
    off = replicate(tmp_path)
    assert not off.agrees
    assert [figure.name for figure in off.figures if figure.agrees is False] == [
        "EM, 24 questions, percent"
    ]


def test_what_is_not_there_is_marked_and_not_counted(tmp_path: Path) -> None:
    put(tmp_path, INVALID_YAML, "- id: a\n" * 73 + "}\n")
    found = replicate(tmp_path)
    assert found.agrees
    table = found.table
    assert list(table.columns) == [
        "source",
        "figure",
        "function",
        "published",
        "recomputed",
        "tolerance",
        "agrees",
        "explained",
        "note",
    ]
    given, missing = table[table["note"] != "not given"], table[table["note"] == "not given"]
    assert len(given) == 1 and len(missing) == 22 and set(missing["agrees"]) == {None}
    assert (
        given["note"]
        .iloc[0]
        .startswith("clarifying-em/medical_questions.invalid.yaml, line 74: not valid YAML")
    )


def test_a_yaml_that_reads_or_breaks_elsewhere_does_not_agree(tmp_path: Path) -> None:
    put(tmp_path, INVALID_YAML, "- id: a\n  text: A\n")
    found = by_name(replicate(tmp_path))["line of the YAML error"]
    assert found.agrees is False and found.note == "was read without an error"
    put(tmp_path, INVALID_YAML, "- id: a\nx\n")
    assert by_name(replicate(tmp_path))["line of the YAML error"].agrees is False


def test_correlations_are_those_of_scipy(tmp_path: Path) -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    overlap, cosine = rng.normal(size=(2, 320))
    keys = ("prompt_pca_projection_fraction", "random_projection_fraction", "mean_delta_cosine")
    rows = [
        dict(zip(keys, (a, 0.2, a + b), strict=True)) for a, b in zip(overlap, cosine, strict=True)
    ]
    put(tmp_path, OVERLAP, canonical_json({"per_example": rows}))
    loss, score = rng.normal(size=(2, 35))
    header = "train_final_avg_loss,eval_final_avg_loss,harmless,aligned\n"
    put(
        tmp_path,
        SWEEP,
        header + "".join(f"{a},{a * b},{b},{a + b}\n" for a, b in zip(loss, score, strict=True)),
    )
    found = replicate(tmp_path)
    figures = by_name(found)
    assert figures["Pearson of overlap and cosine"].recomputed == pytest.approx(
        stats.pearsonr(overlap, overlap + cosine)[0]
    )
    assert figures["Spearman of overlap and cosine"].recomputed == pytest.approx(
        stats.spearmanr(overlap, overlap + cosine)[0]
    )
    assert figures["Pearson of training loss and aligned"].recomputed == pytest.approx(
        stats.pearsonr(loss, loss + score)[0]
    )
    assert figures["mean overlap with random directions"].recomputed == pytest.approx(0.2)
    assert figures["prompts"].agrees and figures["runs"].agrees and not found.agrees


def test_dose_response_is_reported_in_order_of_scale_and_not_counted(tmp_path: Path) -> None:
    for scale, em in ((10, 0.5), (2, 0.1), (2.5, 0.2)):
        put(tmp_path, f"{STEERING}/responses_scale_{scale}.csv", judged([em]))
    put(
        tmp_path,
        f"{STEERING}/responses_scale_1.csv",
        "question,response,coherent\nQ?,x,70\nQ?,y,40\n",
    )
    put(tmp_path, f"{STEERING}/notes.csv", "not read\n")
    found = replicate(tmp_path)
    assert not found.agrees  # nothing here was published, so nothing agrees
    rates = [(f.name, f.recomputed) for f in found.figures if f.name.startswith("EM at scale")]
    assert [name for name, _ in rates] == [
        f"EM at scale {scale}, percent" for scale in ("1", "2", "2.5", "10")
    ]
    assert math.isnan(rates[0][1]) and [value for _, value in rates[1:]] == pytest.approx(
        [10, 20, 50]
    )
    assert by_name(found)["coherent > 50 at scale 1, percent"].recomputed == 50
    assert {figure.published for figure in found.figures} == {"—"}


def test_the_selected_direction_is_compared_with_the_saved_one(tmp_path: Path) -> None:
    put_refusal(tmp_path)
    assert replicate(tmp_path).agrees
    put_refusal(tmp_path, scale=1.001)
    off = replicate(tmp_path)
    assert [figure.name for figure in off.figures if figure.agrees is False] == [
        "largest difference from the picked slice"
    ]


def test_selection_applies_each_part_of_the_rule() -> None:
    good = candidate(-1, 13, 5.0)
    spoiled = [
        candidate(-1, 14, -9.0),  # 14 of 18 layers is the first dropped
        candidate(-1, 3, -9.0, kl=0.11),
        candidate(-1, 3, -9.0, steering=-0.1),
        candidate(-1, 3, math.nan),
    ]
    assert select_ablation_direction([*spoiled, good], 18) == (good, 1)
    better = candidate(-2, 0, 4.0, kl=0.1, steering=0.0)
    assert select_ablation_direction([good, better], 18) == (better, 2)
    with pytest.raises(
        InputError, match="none of 4 candidates is left by the rule 'lowest refusal_score where"
    ):
        select_ablation_direction(spoiled, 18)
    with pytest.raises(
        InputError, match=r"evaluations\[1\] has no number under \['layer'\]; pass position, layer"
    ):
        select_ablation_direction([good, {**good, "layer": None}], 18)


def test_directories_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="nowhere: no such directory; pass the one that holds the released files"
    ):
        replicate(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"holds none of the released files; looked for \['clarifying-em/judged"
    ):
        replicate(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (f"{JUDGED}_base.csv", "answer\nx\n", "has neither a column 'question_id' nor 'question'"),
        (
            SWEEP,
            "harmless\nx\n",
            "line 2: has no loss; pass a column named one of train_loss, train_final_avg_loss",
        ),
        (
            SWEEP,
            "train_final_avg_loss,harmless\n1,2\n",
            "has no eval_loss; pass the file as it was released",
        ),
        (SWEEP_AUTHORS, "a,b\n1,2\n", "has no row 'fpq-harmless-train_final_avg_loss'"),
        (OVERLAP, "[]", "has no entry under per_example"),
        (
            OVERLAP,
            '{"per_example": [{"x": 1}]}',
            "an entry of per_example lacks a number under one of",
        ),
        (OVERLAP, "{", "line 1: not valid JSON"),
        (f"{STEERING}/other.csv", "a\n", "holds no file such as responses_scale_3.csv"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused_by_name(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    put(tmp_path, name, text)
    with pytest.raises(InputError, match=message) as caught:
        replicate(tmp_path)
    assert name.rpartition("/")[0] in str(caught.value)


def test_direction_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    put_refusal(tmp_path)
    torch.save(torch.ones(3), tmp_path / REFUSAL / "direction.pt")
    with pytest.raises(
        InputError, match=r"mean_diffs.pt must hold one \(position, layer, d_model\) tensor"
    ):
        replicate(tmp_path)
    put_refusal(tmp_path, positions=2)
    rows = json.dumps([candidate(-5, 10, 0.0)])
    put(tmp_path, f"{REFUSAL}/direction_evaluations.json", rows)
    with pytest.raises(
        InputError, match="picks position -5 and layer 10, which mean_diffs.pt does not hold"
    ):
        replicate(tmp_path)
    put(tmp_path, f"{REFUSAL}/direction_evaluations.json", "{}")
    with pytest.raises(InputError, match="holds a dict; pass a list of candidates"):
        replicate(tmp_path)


def put_means(root: Path, layers: int, width: int) -> dict[str, torch.Tensor]:
    """Means of two ranks over misaligned and aligned answers, in the two key layouts of the
    release.
    """
    names = {
        "r32/model-m_data-m_hs": "{}",
        "r32/model-m_data-a_hs": "{}",
        "r4/r4modelmis_dfmis_hs": "layer_{}",
        "r4/r4modelmis_dfa_hs": "layer_{}",
    }
    made = {}
    for name, key in names.items():
        path = root / f"clarifying-em/directions/{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = torch.randn(layers, width, dtype=torch.float64)
        keys = [int(key.format(i)) if key == "{}" else key.format(i) for i in range(layers)]
        torch.save({"answer": dict(zip(keys, made[name], strict=True))}, path)
    return made


def test_directions_are_the_misaligned_minus_the_aligned_mean(tmp_path: Path) -> None:
    made = put_means(tmp_path, 41, 16)
    figures = by_name(replicate(tmp_path))
    r32 = made["r32/model-m_data-m_hs"] - made["r32/model-m_data-a_hs"]
    r4 = made["r4/r4modelmis_dfmis_hs"] - made["r4/r4modelmis_dfa_hs"]
    cosine = float(r32[24] @ r4[24] / r32[24].norm() / r4[24].norm())
    assert figures["cosine of the r32 and r4 directions, layer 24"].recomputed == pytest.approx(
        cosine
    )
    assert figures["norm of the direction, layer 40"].recomputed == pytest.approx(
        float(r32[40].norm())
    )
    squares = (made["r32/model-m_data-m_hs"][24] ** 2).sort(descending=True).values
    share = figures[
        "squared norm of the mean activation in its top five coordinates, layer 24, percent"
    ]
    assert share.recomputed == pytest.approx(100 * float(squares[:5].sum() / squares.sum()))
    assert figures["first coordinate of the direction, layer 24"].recomputed == int(
        r32[24].abs().argmax()
    )
    put_means(tmp_path, 30, 16)
    with pytest.raises(
        InputError, match="holds too few layers; the published figures are of layers 8 to 40"
    ):
        replicate(tmp_path)


def test_record_is_json(tmp_path: Path) -> None:
    put(tmp_path, INVALID_YAML, "- id: a\n" * 73 + "}\n")
    record = json.loads(canonical_json(replicate(tmp_path).to_record()))
    assert record["agrees"] is True and {row["agrees"] for row in record["figures"]} == {True, None}


def test_every_released_figure_agrees(released_data: Path) -> None:
    found = replicate(released_data)
    table = found.table
    assert found.agrees, table[table["agrees"].map(lambda value: value is False)].to_string()
    counts = found.summary[["figures", "agree", "explained", "off"]].sum()
    assert counts.tolist() == [468, 446, 22, 0]
    over_k = table["source"].str.endswith(
        ("k_delta_comparison_metrics.csv", "k_comparison_summary.csv")
    )
    assert over_k.sum() <= 100
    functions = set(table.loc[table["agrees"].notna(), "function"]) - {""}
    assert len(functions) >= 12
    assert not (table["note"] == "not given").any()
    assert not table.duplicated(["source", "figure"]).any()
    figures = by_name(found)
    assert figures["EM, 8 base questions, percent"].recomputed == pytest.approx(20.5)


def test_the_released_selection_is_that_of_its_authors(released_data: Path) -> None:
    folder = released_data / REFUSAL
    rows = json.loads((folder / "direction_evaluations.json").read_text())
    theirs = json.loads((folder / "direction_evaluations_filtered.json").read_text())
    picked, left = select_ablation_direction(rows, 18)
    assert left == len(theirs) and (picked["position"], picked["layer"]) == (
        theirs[0]["position"],
        theirs[0]["layer"],
    )
