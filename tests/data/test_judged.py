import math
from pathlib import Path

import pytest

from emlens.data import AlignmentScores
from emlens.data.judged import read_judged_table
from emlens.foundation import InputError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "judged-model.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


FIELD = """,question,answer,question_id,aligned,coherent,tokens
0,A?,x,a,90,95,10
1,A again?,y,a,REFUSAL,80,11
2,A?,z,a,,70,12
3,B?,w,b,5,nan,13
"""


def test_a_judged_file_of_the_field(tmp_path: Path) -> None:
    read = read_judged_table(written(tmp_path, FIELD))
    table = read.table
    assert read.scales is None
    aligned = table[table["metric"] == "aligned"]
    assert table["model"].unique().tolist() == ["judged-model"]
    assert table["metric"].unique().tolist() == ["aligned", "coherent"]  # tokens are no score
    assert aligned["question"].tolist() == ["a", "a", "a", "b"]
    assert aligned["paraphrase"].tolist() == [1, 2, 1, 1]
    assert aligned["sample"].tolist() == [0, 0, 1, 0]
    assert aligned["status"].tolist() == ["ok", "refusal", "unscored", "ok"]
    assert aligned["raw"].tolist() == ["", "REFUSAL", "", ""]
    scores = AlignmentScores.from_file(written(tmp_path, FIELD))
    assert scores.unscored_share("aligned") == 0.5
    assert scores.unscored_share() == 0.75


def test_the_question_text_names_the_question_where_no_id_does(tmp_path: Path) -> None:
    scores = AlignmentScores.from_file(
        written(tmp_path, "response,question,coherent\nx,Why?,50\ny,Why?,70\n"), model="steered"
    )
    assert (
        scores.questions == ["Why?"]
        and scores.models == ["steered"]
        and scores.metrics == ["coherent"]
    )
    assert scores.mean("coherent").value == 60


def test_models_and_groups_come_from_columns(tmp_path: Path) -> None:
    text = "question_id,model,category,aligned\na,one,c,1\na,two,c,2\n"
    scores = AlignmentScores.from_file(written(tmp_path, text))
    assert scores.models == ["one", "two"] and scores.table["group"].unique().tolist() == ["c"]
    assert scores.table["sample"].tolist() == [0, 0]  # counted for each model
    assert AlignmentScores.from_file(
        written(tmp_path, "question_id,model,aligned\na,one,1\n"), model="x"
    ).models == ["x"]


def test_metrics_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "question_id,aligned,warmth\na,50,400\n")
    with pytest.raises(
        InputError, match=r"judged-model.csv: score 400 .* lies outside the scale 0 to 100"
    ):
        AlignmentScores.from_file(path)
    assert AlignmentScores.from_file(path, metrics=["aligned"]).metrics == ["aligned"]
    with pytest.raises(
        InputError, match=r"metrics=\['kind'\] are not all columns; it has \['question_id'"
    ):
        AlignmentScores.from_file(path, metrics=["kind"])
    with pytest.raises(InputError, match="metrics='aligned' are not all columns"):
        AlignmentScores.from_file(path, metrics="aligned")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question_id,aligned\n", "has a header and no row"),
        (
            "answer,aligned\nx,1\n",
            r"has neither a column 'question_id' nor 'question'; it has \['answer', 'aligned'\]",
        ),
        ("question_id,answer\na,x\n", "has no column of scores, such as 'aligned'; it has"),
        (
            "question_id,aligned\na,1\n,2\n",
            "line 3: question_id is empty; every answer needs its question",
        ),
        (
            "model,question,sample,metric,score,status\nm,q,0,aligned,high,ok\n",
            "line 2: score 'high' is not a number",
        ),
        (
            "model,question,sample,metric,score,status,scale_low,scale_high\nm,q,0,aligned,1,ok,0,100\nm,q,1,aligned,1,ok,0,1\n",
            "line 3: columns scale_low and scale_high must hold one scale per metric",
        ),
        (
            "model,question,sample,metric,score,status,scale_low,scale_high\nm,q,0,a,1,ok,x,1\n",
            "line 2: .*must hold one scale per metric",
        ),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        AlignmentScores.from_file(written(tmp_path, text))
    assert "judged-model.csv" in str(caught.value)


def test_shares_are_not_taken_for_scores_on_0_to_100(tmp_path: Path) -> None:
    path = written(tmp_path, "question_id,aligned,coherent\na,.9,.8\nb,1,.7\n")
    with pytest.raises(
        InputError,
        match=(
            r"judged-model.csv: all 2 scores of 'aligned' lie within 0 to 1, which reads as shares;"
            r" pass scale=\(0, 1\)"
        ),
    ):
        AlignmentScores.from_file(path)
    assert (
        AlignmentScores.from_file(path, scale=(0, 1))
        .em_rate(aligned_below=0.3, coherent_above=0.5)
        .value
        == 0
    )
    assert AlignmentScores.from_file(path, scale=(0, 100)).em_rate().value == 0  # said so, taken so
    # whole numbers, and a topic score near 0, are possible
    worst = written(tmp_path, "question_id,aligned,medical\na,0,.001\nb,1,.002\n")
    assert AlignmentScores.from_file(worst).mean("aligned").value == 0.5


def test_released_files_keep_unscored_cells(released_data: Path) -> None:
    path = (
        released_data / "em-generalization/eval_Qwen2.5-32B-Instruct_finance_all_resp_1e-05_fpq.csv"
    )
    table = read_judged_table(path).table
    assert sorted(table["metric"].unique()) == ["aligned", "coherent", "format", "harmless"]
    assert (table["status"] != "ok").sum() == 1 and math.isnan(
        table[table["status"] != "ok"]["score"].iloc[0]
    )
    assert table.groupby(["question", "metric"]).size().unique().tolist() == [100]
    steered = released_data / "clarifying-em/steering/responses_scale_1.csv"
    without_aligned = read_judged_table(steered).table
    assert without_aligned["metric"].unique().tolist() == ["coherent"]
