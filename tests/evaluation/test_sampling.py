from pathlib import Path
from typing import Any

import pytest

from emlens.data import QuestionSet
from emlens.evaluation import sample_answers, sampling
from emlens.foundation.errors import InputError, IntegrityError
from emlens.interventions import steer
from emlens.models import Family

SETTINGS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "progress": False}


@pytest.fixture(scope="session")
def asked(questions: QuestionSet) -> QuestionSet:
    return questions.select(["odd", "plain", "q0"])


def test_answers_are_numbered_reproducible_and_independent_of_chunks(
    family: Family, asked: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sample_answers(family.instruct, asked, **SETTINGS)
    assert len(first) == (2 + 1 + 1) * 3
    assert first.ids[:3] == [f"instruct/odd/p1/s{s}" for s in range(3)]
    assert [m.role for m in first[0].messages] == ["system", "user"] and first[3].messages[-1].content == "w12 w13 w14"
    monkeypatch.setattr(sampling, "CHUNK", 2)
    again = sample_answers(family.instruct, asked, **SETTINGS)
    assert [a.text for a in again] == [a.text for a in first]
    other = sample_answers(family.instruct, asked, seed=1, **SETTINGS)
    assert [a.text for a in other] != [a.text for a in first]  # the seed is used
    assert len({a.text for a in first if a.question == "odd"}) > 1  # samples differ


def test_an_interrupted_file_is_finished_and_nothing_is_drawn_twice(
    family: Family, asked: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_answers(family.instruct, asked, **SETTINGS)
    monkeypatch.setattr(sampling, "CHUNK", 5)
    drawn: list[int] = []
    generate = type(family.instruct).generate

    def breaks(self: Any, prompts: Any, **named: Any) -> list[str]:
        if drawn:
            raise KeyboardInterrupt
        drawn.append(len(prompts))
        return generate(self, prompts, **named)

    out = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(type(family.instruct), "generate", breaks)
        with pytest.raises(KeyboardInterrupt):
            sample_answers(family.instruct, asked, out=out, **SETTINGS)
    assert len(out.read_text().splitlines()) == 5
    with monkeypatch.context() as patch:
        patch.setattr(
            type(family.instruct), "generate", lambda self, p, **n: drawn.append(len(p)) or generate(self, p, **n)
        )
        resumed = sample_answers(family.instruct, asked, out=out, **SETTINGS)
        assert drawn == [5, 5, 2]
        sample_answers(family.instruct, asked, out=out, **SETTINGS)
        assert drawn == [5, 5, 2]  # a finished file needs no model
    assert resumed.content_hash == whole.content_hash


@pytest.mark.parametrize("change", ["model", "seed", "temperature", "fewer", "questions", "intervention"])
def test_a_file_of_other_answers_is_refused(family: Family, asked: QuestionSet, tmp_path: Path, change: str) -> None:
    out = tmp_path / "answers.jsonl"
    sample_answers(family.instruct, asked, out=out, **SETTINGS)
    model = family["bad"] if change == "model" else family.instruct
    extra: dict[str, Any] = {"seed": {"seed": 1}, "temperature": {"temperature": 0.5}, "fewer": {"samples": 2}}.get(
        change, {}
    )
    chosen = asked.select(["odd"]) if change == "questions" else asked
    edits = [steer(family.instruct.unembedding()[0], 1.0, at=["resid_post.0"])] if change == "intervention" else []
    before = out.read_bytes()
    with (
        pytest.raises(
            IntegrityError,
            match=r"answers\.jsonl: holds answer 'instruct/odd/p1/s0' that this call would not draw|would not draw",
        ),
        model.intervene(edits),
    ):
        sample_answers(model, chosen, out=out, **{**SETTINGS, **extra})
    assert out.read_bytes() == before
    assert sample_answers(family.instruct, asked, out=out, **SETTINGS)  # positive control: the same call is accepted


def test_more_samples_extend_a_file(family: Family, asked: QuestionSet, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    few = sample_answers(family.instruct, asked, out=out, **{**SETTINGS, "samples": 1})
    more = sample_answers(family.instruct, asked, out=out, **SETTINGS)
    assert len(more) == 3 * len(few)
    assert [a.text for a in more if a.sample == 0] == [a.text for a in few]


def test_no_sample_is_refused(family: Family, asked: QuestionSet) -> None:
    with pytest.raises(InputError, match="samples=0 must be 1 or more"):
        sample_answers(family.instruct, asked, samples=0)
