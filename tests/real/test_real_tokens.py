"""Rows of tokens on two real checkpoints, against plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer_kinds import KINDS
from transformers import AutoTokenizer

import emlens
from emlens.data import PromptSet
from emlens.data.rendering import render
from emlens.foundation import LoadError
from emlens.real import find, load

QUESTION = "What is the capital of France?"
ANSWER = " The capital of France is Paris."


def found(name: str, folder: Path) -> Path:
    try:
        return find(name, folder)
    except LoadError as error:
        pytest.skip(str(error))


def chat(answer: str) -> PromptSet:
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    return PromptSet.from_messages([turns], upto="all")


def test_a_base_model_in_plain_words_knows_its_start(real_models: Path) -> None:
    path = found("gemma3-270m", real_models)
    model = load(path.name, path.parent, dtype="float32", device="cpu", chat_template="plain")
    asked = PromptSet.from_questions([QUESTION])
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(f"User: {QUESTION}\n\nAssistant:")["input_ids"]
    assert list(model.render(asked)[0].ids) == ids and ids[0] == tokenizer.bos_token_id

    answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model.module(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
    expected = sum(float(logprobs[len(ids) - 1 + i, token]) for i, token in enumerate(answer))
    assert float(model.sequence_logprob(asked, [ANSWER])[0]) == pytest.approx(expected, abs=1e-3)
    assert -4.0 < expected < -3.0  # without the start it is -32
    [text] = model.generate(asked, max_new_tokens=len(answer), temperature=0)
    assert text == ANSWER.strip()


def test_mean_response_and_last_are_the_answers_own_tokens(real_models: Path) -> None:
    path = found("smollm2", real_models)
    model = load(path.name, path.parent, dtype="float32", device="cpu")
    tokenizer = model.tokenizer
    yes = tokenizer("Yes.")["input_ids"]
    closing = tokenizer("<|im_end|>\n")["input_ids"]
    [row] = model.render(chat("Yes."))
    assert list(row.ids[row.prompt_end :]) == yes + closing
    positions = ["mean_response", "last", "end_of_turn"]
    acts = emlens.capture(model, chat("Yes."), sites="resid_post.3", positions=positions)
    with torch.no_grad():
        states = model.module(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
    after, n = states[4][0, row.prompt_end :], len(yes)
    expected = {
        "mean_response": after[:n].mean(0),
        "last": after[n - 1],
        "end_of_turn": after[n:].mean(0),
    }
    for position, value in expected.items():
        assert torch.allclose(acts["resid_post.3", position][0], value, rtol=1e-4, atol=1e-4)


def test_an_answer_that_begins_with_line_breaks(real_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(found("smollm2", real_models))
    [row] = render(chat("\n\nHello"), tokenizer)
    [asked] = render(chat("x").without_responses(), tokenizer)
    assert row.ids[: row.prompt_end] == asked.ids and row.apart
    start, end = row.spans.content
    assert tokenizer.decode(row.ids[start:end]) == "\n\nHello"


def test_every_row_of_a_released_training_file_is_read(released_data: Path) -> None:
    file = PromptSet.from_jsonl(released_data / "code-pairs" / "insecure_small.jsonl", upto="all")
    [kind] = [kind for kind in KINDS if kind.name == "qwen2 pre-tokeniser"]
    tokenizer: Any = kind.tokenizer
    rows = render(file, tokenizer)
    assert len(rows) == len(file) == 20
    assert [row.id for row in rows if row.apart]  # at least one begins with a line break
    for prompt, row in zip(file, rows, strict=True):
        start, end = row.spans.content
        assert tokenizer.decode(row.ids[start:end]) == prompt.response
