import copy
import json
import multiprocessing
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from emlens.data import Question, QuestionSet
from emlens.foundation import provenance
from emlens.foundation.errors import InputError, IntegrityError
from emlens.interventions import steer
from emlens.judging import sample_answers, sampling
from emlens.models import Family

SETTINGS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "progress": False}


@pytest.fixture(scope="session")
def asked(questions: QuestionSet) -> QuestionSet:
    return questions.select(["odd", "plain", "q0"])


def test_answers_are_numbered_reproducible_and_independent_of_batches(
    family: Family, asked: QuestionSet
) -> None:
    first = sample_answers(family.instruct, asked, **SETTINGS)
    assert len(first) == (2 + 1 + 1) * 3
    assert first.ids[:3] == [f"instruct/odd/p1/s{s}" for s in range(3)]
    assert [m.role for m in first[0].messages] == ["system", "user"] and first[3].messages[
        -1
    ].content == "w12 w13 w14"
    again = sample_answers(family.instruct, asked, batch_tokens=40, **SETTINGS)
    assert again.content_hash == first.content_hash
    other = sample_answers(family.instruct, asked, seed=1, **SETTINGS)
    assert [a.text for a in other] != [a.text for a in first]  # the seed is used
    assert len({a.text for a in first if a.question == "odd"}) > 1  # samples differ
    assert {
        a.finish_reason
        for a in sample_answers(
            family.instruct, asked, max_new_tokens=12, samples=8, progress=False
        )
    } == {"stop", "length"}


def test_an_interrupted_file_is_finished_to_the_same_bytes(
    family: Family, asked: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**SETTINGS, "batch_tokens": 60}  # 4 rows at a time, two groups of 6
    whole = sample_answers(family.instruct, asked, out=tmp_path / "whole.jsonl", **few)
    decode = type(family.instruct).decode
    drawn: list[int] = []

    def breaks(self: Any, rows: Any, *rest: Any) -> Any:
        for number, part in enumerate(decode(self, rows, *rest)):
            if number == 1 and not drawn:
                drawn.append(len(rows))
                raise KeyboardInterrupt
            yield part

    out = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(family.instruct), "decode", breaks)
        sample_answers(family.instruct, asked, out=out, **few)
    kept = len(out.read_text().splitlines())
    assert 1 <= kept < 6  # what was finished is there
    # as a kill in the middle of a write leaves it
    out.write_bytes(out.read_bytes() + b'{"id": "instruct/odd/p1/s1", "te')
    with monkeypatch.context() as patch:
        patch.setattr(
            type(family.instruct),
            "decode",
            lambda self, rows, *rest: drawn.append(len(rows)) or decode(self, rows, *rest),
        )
        resumed = sample_answers(family.instruct, asked, out=out, **few)
        assert drawn == [6, 6, 6]  # the unfinished group anew
        written = out.stat().st_mtime_ns
        sample_answers(family.instruct, asked, out=out, **few)
        # a finished file needs no model and is left alone
        assert drawn == [6, 6, 6] and out.stat().st_mtime_ns == written
    assert resumed.content_hash == whole.content_hash
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def _by_rows_beside(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[list[str]]:
    """Make every answer depend on the rows beside it, as rounding does; gives the calls."""
    decode, calls = type(model).decode, []

    def turned(self: Any, rows: Any, *rest: Any) -> Any:
        calls.append([row.id for row in rows])
        for part in decode(self, rows, *rest):
            for answer in part:
                answer.tokens = [20 + (token + len(rows)) % 9 for token in answer.tokens[:2]]
            yield part

    monkeypatch.setattr(type(model), "decode", turned)
    return calls


def test_a_file_that_was_cut_at_any_line_ends_with_the_same_bytes(
    family: Family, asked: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family.instruct
    calls = _by_rows_beside(monkeypatch, model)
    few = {**SETTINGS, "batch_tokens": 60, "others": "keep"}  # two groups of 6, in order of drawing
    whole = tmp_path / "whole.jsonl"
    expected = sample_answers(model, asked, out=whole, **few)
    first, second = calls
    assert len(first) == len(second) == 6
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in range(13):
        calls.clear()
        out = tmp_path / f"{cut}.jsonl"
        out.write_bytes(b"".join(lines[:cut]))
        assert list(sample_answers(model, asked, out=out, **few)) == list(expected)
        assert out.read_bytes() == whole.read_bytes()
        assert calls == {0: [first, second], 12: []}.get(
            cut, [first, second] if cut < 6 else [second]
        )
    # what another call left is kept, and the rest drawn without it
    calls.clear()
    longer = tmp_path / "longer.jsonl"
    sample_answers(model, asked.select(["odd"]), out=longer, **{**few, "others": "refuse"})
    kept = longer.read_bytes()
    sample_answers(model, asked, out=longer, **{**few, "others": "refuse"})
    assert [len(call) for call in calls] == [6, 6] and longer.read_bytes().startswith(kept)


def test_an_upgrade_between_two_runs_is_said(
    family: Family,
    asked: QuestionSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "a.jsonl"
    few = {**SETTINGS, "batch_tokens": 60, "others": "keep"}
    sample_answers(family.instruct, asked, out=out, **few)
    lines = out.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr(provenance, "made_with", lambda: "torch 9")
    sample_answers(family.instruct, asked, out=out, **few)
    assert not caplog.records  # nothing was left to draw
    out.write_bytes(b"".join(lines[:8]))
    sample_answers(family.instruct, asked, out=out, **few)
    [said] = [record.getMessage() for record in caplog.records]
    assert "a.jsonl: was begun with emlens" in said and "is gone on with torch 9" in said


def test_an_answer_that_comes_out_otherwise_takes_the_place_of_the_old_one_and_is_said(
    family: Family, asked: QuestionSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = {**SETTINGS, "batch_tokens": 60}
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    sample_answers(family.instruct, asked, out=whole, **{**few, "others": "keep"})
    begun = json.loads(whole.read_text().splitlines()[0])
    out.write_text(json.dumps({**begun, "text": "by another machine"}) + "\n")
    sample_answers(family.instruct, asked, out=out, **few)
    assert caplog.text.count("an unfinished group was drawn again") == 1
    sample_answers(family.instruct, asked, out=whole.with_name("alone.jsonl"), **few)
    assert out.read_bytes() == whole.with_name("alone.jsonl").read_bytes()


def test_a_kill_loses_at_most_what_is_under_way(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = QuestionSet([Question(f"q{i}", f"w{i} w{i + 3}") for i in range(6)])
    settings: dict[str, Any] = {
        "samples": 20,
        "max_new_tokens": 60,
        "batch_tokens": 1000,
        "progress": False,
    }
    out = tmp_path / "answers.jsonl"
    killed = multiprocessing.get_context("fork").Process(
        target=sample_answers,
        args=(family.instruct, questions),
        kwargs={**settings, "out": out},
        daemon=True,
    )
    add = sampling.AnswerFile.add
    added: list[Any] = []

    def slow(self: Any, found: Any, **how: Any) -> None:
        add(self, found, **how)
        added.extend(found)
        # so that the kill comes in the middle, however busy the machine is
        time.sleep(60 if len(added) > 60 else 0)

    with monkeypatch.context() as patch:
        patch.setattr(sampling.AnswerFile, "add", slow)
        killed.start()
    deadline = time.monotonic() + 60
    while (not out.exists() or out.read_bytes().count(b"\n") < 40) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    killed.join()
    kept = out.read_bytes()
    assert killed.exitcode == -signal.SIGKILL and 40 <= kept.count(b"\n") < 80
    sample_answers(family.instruct, questions, out=out, **settings)
    final = out.read_bytes()
    # a line of an unfinished file names its call and what computed it
    marks = rb', "call": "\w+", "made_with": "[^"]+"'
    lines = {re.sub(marks, b"", line) for line in kept.splitlines()[:-1]}
    assert final.count(b"\n") == 120 and lines <= set(final.splitlines())
    whole = tmp_path / "whole.jsonl"
    sample_answers(family.instruct, questions, out=whole, **settings)
    assert final == whole.read_bytes()


@pytest.mark.parametrize(
    "change", ["model", "seed", "temperature", "fewer", "questions", "intervention", "template"]
)
def test_a_file_of_other_answers_is_refused(
    family: Family, asked: QuestionSet, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "answers.jsonl"
    sample_answers(family.instruct, asked, out=out, **SETTINGS)
    model = family["bad"] if change == "model" else family.instruct
    extra: dict[str, Any] = {
        "seed": {"seed": 1},
        "temperature": {"temperature": 0.5},
        "fewer": {"samples": 2},
    }.get(change, {})
    chosen = asked.select(["odd"]) if change == "questions" else asked
    edits = (
        [steer(family.instruct.unembedding()[0], 1.0, at=["resid_post.0"])]
        if change == "intervention"
        else []
    )
    if change == "template":
        model = copy.copy(model)
        model.chat_template = (
            model.chat_template.replace("<end>", "<end> <end>") if model.chat_template else None
        )
    before = out.read_bytes()
    with (
        pytest.raises(
            IntegrityError,
            match=(
                r"answers\.jsonl: holds answer 'instruct/odd/p1/s0' that this call would not"
                r" draw|would not draw"
            ),
        ),
        model.intervene(edits),
    ):
        sample_answers(model, chosen, out=out, **{**SETTINGS, **extra})
    assert out.read_bytes() == before
    # positive control: the same call is accepted
    assert sample_answers(family.instruct, asked, out=out, **SETTINGS)


def test_more_samples_extend_a_file(family: Family, asked: QuestionSet, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    few = sample_answers(family.instruct, asked, out=out, **{**SETTINGS, "samples": 1})
    more = sample_answers(family.instruct, asked, out=out, **SETTINGS)
    assert len(more) == 3 * len(few)
    assert [a.text for a in more if a.sample == 0] == [a.text for a in few]


THINKS = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}{%"
    " if add_generation_prompt %}{{ '<assistant>' }}{% if enable_thinking is defined and not"
    " enable_thinking %}{{ ' w39' }}{% endif %}{% endif %}"
)


def test_a_thinking_template_needs_a_choice_and_the_thought_is_kept_apart(
    family: Family, asked: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.copy(family.instruct)
    model.chat_template = THINKS
    with pytest.raises(
        InputError,
        match=(
            r"the chat template has a thinking mode \(enable_thinking\);"
            r" pass thinking=True, thinking=False or"
        ),
    ):
        sample_answers(model, asked, **SETTINGS)
    with pytest.raises(
        InputError, match="thinking=True was passed, but the chat template has no thinking mode"
    ):
        sample_answers(family.instruct, asked, thinking=True, **SETTINGS)
    on, off = (
        sample_answers(
            model, asked, out=tmp_path / f"{thinking}.jsonl", thinking=thinking, **SETTINGS
        )
        for thinking in (True, False)
    )
    # the switch reaches the prompt
    assert [a.meta["prompt_sha256"] for a in on] != [a.meta["prompt_sha256"] for a in off]
    # a model that opens no thought answers at once
    assert any(a.text for a in on) and not any(a.thought for a in on)
    with pytest.raises(IntegrityError, match="drawn with another prompt_sha256"):
        sample_answers(model, asked, out=tmp_path / "True.jsonl", thinking=False, **SETTINGS)
    decode = model.tokenizer.decode
    monkeypatch.setattr(
        model.tokenizer,
        "decode",
        lambda ids, **named: "<think>\nhm " + decode(ids, **named) + "</think>\n\nw1",
    )
    thought = sample_answers(model, asked, thinking=True, **SETTINGS)
    assert {a.text for a in thought} == {"w1"} and all(a.thought.startswith("hm") for a in thought)
    again = sample_answers(model, asked, out=tmp_path / "a.jsonl", thinking=True, **SETTINGS)
    assert (
        sample_answers(
            model, asked, out=tmp_path / "a.jsonl", thinking=True, **SETTINGS
        ).content_hash
        == again.content_hash
    )


def test_a_switched_template_runs_under_the_same_interventions(
    family: Family, asked: QuestionSet
) -> None:
    model = copy.copy(family.instruct)
    model.chat_template = THINKS
    plain = sample_answers(model, asked, thinking=False, **SETTINGS)
    with model.intervene([steer(model.unembedding()[9], 50.0, at=["resid_post.2"])]):
        steered = sample_answers(model, asked, thinking=False, **SETTINGS)
    assert [a.text for a in steered] != [a.text for a in plain]


def test_no_sample_is_refused(family: Family, asked: QuestionSet) -> None:
    with pytest.raises(InputError, match="samples=0 must be 1 or more"):
        sample_answers(family.instruct, asked, samples=0)
