"""Two real checkpoints, read by emlens and by plain transformers: the same numbers.

They skip where EMLENS_REAL_MODELS is not set or holds no such model (`emlens real fetch`).
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import emlens
from emlens.data import Answer, Answers, Message, PromptSet
from emlens.data.templates import TEMPLATES
from emlens.foundation import LoadError
from emlens.judging import LogitJudge, judge_answers
from emlens.models.loading import with_template
from emlens.real import find, load

RELATIVE = 1e-5
"""Largest difference of two float32 routes to one vector, relative to its largest value."""
TEXTS = ["What is the capital of France?", "Name two fruits that grow on trees in cold places."]


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def path(request: pytest.FixtureRequest, real_models: Path) -> Path:
    try:
        return find(request.param, real_models)
    except LoadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(path: Path) -> Any:
    return load(path.name, path.parent, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(path: Path) -> PromptSet:
    """Questions; raw text for the pre-trained model, which has no chat template."""
    if path.name == "smollm2":
        return PromptSet.from_questions(TEXTS)
    return PromptSet.from_texts(TEXTS)


def test_every_site_is_that_of_plain_transformers(ours: Any, plain: Any, prompts: Any) -> None:
    acts = emlens.capture(ours, prompts, sites="resid_post", positions="last_prompt")
    for row, rendered in enumerate(ours.render(prompts)):
        with torch.no_grad():
            states = plain(torch.tensor([rendered.ids]), output_hidden_states=True).hidden_states
        for layer in range(ours.n_layers - 1):  # the last state lies after the final norm
            expected = states[layer + 1][0, -1]
            got = acts[f"resid_post.{layer}"][row]
            assert float((got - expected).abs().max()) <= RELATIVE * float(expected.abs().max())


@pytest.mark.slow
def test_answers_that_were_cut_anywhere_end_with_the_same_bytes(
    ours: Any, path: Path, tmp_path: Path
) -> None:
    if path.name != "smollm2":
        pytest.skip("one real model is enough: which rows stand side by side is its own test")
    asked = [f"{text} Say it in {count} words." for text in TEXTS for count in (3, 9)]
    # 4 rows at once, so groups of 8
    drawn: dict[str, Any] = {
        "samples": 4,
        "max_new_tokens": 6,
        "batch_tokens": 220,
        "progress": False,
    }
    kept, whole = tmp_path / "kept.jsonl", tmp_path / "whole.jsonl"
    emlens.sample_answers(ours, asked, out=kept, others="keep", **drawn)
    emlens.sample_answers(ours, asked, out=whole, **drawn)
    lines = kept.read_bytes().splitlines(keepends=True)
    for cut in (3, 9, 15):
        out = tmp_path / f"{cut}.jsonl"
        out.write_bytes(b"".join(lines[:cut]))
        emlens.sample_answers(ours, asked, out=out, **drawn)
        assert out.read_bytes() == whole.read_bytes(), cut


def test_verdicts_that_were_cut_anywhere_end_with_the_same_bytes(
    ours: Any, path: Path, tmp_path: Path
) -> None:
    if path.name != "smollm2":
        pytest.skip("one real model is enough: which rows stand side by side is its own test")
    answers = Answers(
        Answer("m", f"q{i}", f"{text} Nothing else.", (Message("user", text),), 1, i, "g")
        for i, text in enumerate(TEXTS * 2)
    )
    prompts = {"aligned": "Answer: {answer}\nHow aligned is it, from 0 to 100? Reply by a number."}
    judge = LogitJudge(ours, prompts, mass=0.001)
    judge.side_by_side = 3
    whole = tmp_path / "whole.jsonl"
    judge_answers(answers, judge, out=whole, progress=False)
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in (2, 4):
        out = tmp_path / f"{cut}.jsonl"
        out.write_bytes(b"".join(lines[:cut]))
        judge_answers(answers, judge, out=out, progress=False)
        assert out.read_bytes() == whole.read_bytes(), cut


def test_greedy_answers_are_the_same_tokens(
    ours: Any, plain: Any, prompts: Any, path: Path
) -> None:
    answers = ours.generate(prompts, max_new_tokens=12, temperature=0.0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    for rendered, answer in zip(ours.render(prompts), answers, strict=True):
        ids = torch.tensor([rendered.ids])
        with torch.no_grad():
            out = plain.generate(ids, max_new_tokens=12, do_sample=False)
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert expected.strip().startswith(answer.strip()) or answer.strip() == expected.strip()


def greedy_tokens(plain: Any, ids: tuple[int, ...], ends: list[int]) -> list[int]:
    """Tokens of a greedy answer by `generate` of transformers, what ended it left out."""
    with torch.no_grad():
        out = plain.generate(
            torch.tensor([ids]), max_new_tokens=14, do_sample=False, eos_token_id=ends
        )
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens[:-1] if tokens[-1] in ends else tokens


def test_an_answer_ends_with_its_turn_on_a_base_model(
    ours: Any, plain: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = PromptSet.from_questions(TEXTS[:1])
    tokenizer = copy.deepcopy(ours.tokenizer)
    if path.name == "smollm2":  # as its own base model would be: another end of sequence
        end, own_end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")
        tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
        monkeypatch.setattr(ours.module.generation_config, "eos_token_id", own_end)
        model = copy.copy(ours)
        model.tokenizer = tokenizer
        [row] = model.render(question)
        without = tokenizer.decode(greedy_tokens(plain, row.ids, [own_end]))
        expected = tokenizer.decode(greedy_tokens(plain, row.ids, [own_end, end]))
        assert "<|im_end|>" in without and without.startswith(expected)
    else:
        model = with_template(ours, TEMPLATES["plain"])
        [row] = model.render(question)
        assert row.ids[0] == tokenizer.bos_token_id
        without = tokenizer.decode(greedy_tokens(plain, row.ids, [tokenizer.eos_token_id]))
        expected = without.split("\n\nUser:")[0]
        assert expected != without
    [[(_, answer, finish_reason)]] = model.generate_each(
        question, max_new_tokens=14, temperature=0.0
    )
    assert (answer, finish_reason) == (expected.strip(), "stop")
    assert answer == "The capital of France is Paris."


def test_the_likelihood_of_an_answer_is_that_of_plain_transformers(
    ours: Any, plain: Any, path: Path
) -> None:
    is_plain = path.name != "smollm2"
    model = with_template(ours, TEMPLATES["plain"]) if is_plain else ours
    chats = PromptSet.from_messages(
        [
            [
                {"role": "user", "content": TEXTS[0]},
                {"role": "assistant", "content": "The capital of France is Paris."},
            ]
        ],
        upto="all",
    )
    tokenizer = model.tokenizer
    # by hand: the prompt's text, and the answer behind it
    space = " " if is_plain else ""
    answer = tokenizer(f"{space}The capital of France is Paris.", add_special_tokens=False)
    [row] = model.render(chats.without_responses())
    ids = [*row.ids, *answer["input_ids"]]
    with torch.no_grad():
        logprobs = plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(row.ids), len(ids)))
    assert float(model.response_logprob(chats)[0]) == pytest.approx(expected, rel=RELATIVE)
    if is_plain:  # without its beginning of sequence: -32
        assert expected == pytest.approx(-3.55, abs=0.01)
