"""Every kind of tokenizer × what is made of its rows, each against a route of its own.

What a template writes is spelled out by hand in `tokenizer_kinds`; the tokens of its parts come
from character offsets; activations, log-probabilities and answers from plain transformers; training
labels from marks that were put into the template by hand.
"""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from parrot_models import hooked, parrot, random_llama
from tokenizer_kinds import KINDS, REAL_FOLDERS, REAL_KINDS, Chat, Kind

import emlens
from emlens.data import PromptSet
from emlens.data.prompts import Message, Prompt
from emlens.data.questions import Question, QuestionSet
from emlens.data.rendering import Rendered, render
from emlens.data.templates import template_of
from emlens.foundation.positions import parse_position
from emlens.judging import sample_answers, score_by_likelihood
from emlens.training.examples import IGNORED, encode_answers

EXACT = 1e-5
"""Float32 through one block in another order of summation; measured: below 2e-7."""
CHATS: tuple[Chat, ...] = (
    (("user", "What is the capital of France?"),),
    (("user", "Yes."), ("assistant", "Hello."), ("user", "a  b\n\nc")),
    (("system", "Be brief."), ("user", "2 + 2?")),
)
ANSWERS = (
    "Yes.",
    "\n\nHello there",
    "  two spaces ",
    "12345 mg",
    "def add(a, b):\n    return a + b\n\n\n",
    "Ünï 🙂",
    "What is the capital of France?",
    "Assistant: user",
)


@pytest.fixture(params=[*KINDS, *REAL_KINDS], ids=repr)
def kind(request) -> Kind:
    if request.param.real:
        folder = request.getfixturevalue("real_models")
        if not (folder / REAL_FOLDERS[request.param.name]).is_dir():
            pytest.skip(f"EMLENS_REAL_MODELS holds no {request.param.name}")
    return request.param


@dataclass(frozen=True)
class ByHand:
    """A row and its parts, from the characters that the template writes.

    Args:
        exact: whether no token lies across a boundary, and the prompt alone has the same tokens, so
            that offsets decide every id.
    """

    ids: list[int]
    prompt_end: int
    content: range
    turn_end: int
    exact: bool


def by_hand(kind: Kind, chat: Chat, answer: str) -> ByHand:
    """The row of a chat, from offsets of the text that `kind` writes by hand."""
    tokenizer, written = kind.tokenizer, kind.written(chat, answer)
    encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    prompt_end = len(written.prompt)
    content_start = prompt_end + len(written.thought)
    content_end = content_start + len(written.content)
    exact = not any(
        first < boundary < last for first, last in places for boundary in (prompt_end, content_end)
    )
    start = [tokenizer.bos_token_id] if kind.adds_start else []
    n = len(start)
    n_prompt = sum(last <= prompt_end for _, last in places)
    # some split white space at the end of a text otherwise than before a word
    alone = tokenizer(written.prompt, add_special_tokens=False)["input_ids"]
    exact = exact and ids[:n_prompt] == alone
    tokens = [
        i
        for i, (first, last) in enumerate(places)
        if i >= n_prompt and last > content_start and first < content_end
    ]
    turn_end = len(ids)
    if kind.end:
        turn_end = ids.index(tokenizer.convert_tokens_to_ids(kind.end), tokens[-1] + 1) + 1
    return ByHand(
        start + ids, n + n_prompt, range(n + tokens[0], n + tokens[-1] + 1), n + turn_end, exact
    )


def prompt_of(chat: Chat, answer: str | None) -> Prompt:
    messages = tuple(Message(role, content) for role, content in chat)
    return Prompt("p", chat[-1][1], messages=messages, response=answer)


def row_of(kind: Kind, chat: Chat, answer: str | None) -> Rendered:
    [row] = render([prompt_of(chat, answer)], kind.tokenizer, chat_template=kind.chat_template)
    return row


def cases(kind: Kind) -> list[tuple[Chat, str]]:
    chats = [chat for chat in CHATS if kind.systems or chat[0][0] != "system"]
    return [(chat, answer) for chat in chats for answer in ANSWERS]


def content_of(row: Rendered) -> range:
    return row.spans.part("response")


def test_rows_and_their_parts_are_those_of_the_characters(kind: Kind):
    exact = 0
    for chat, answer in cases(kind):
        row, hand = row_of(kind, chat, answer), by_hand(kind, chat, answer)
        written, decode = kind.written(chat, answer), kind.tokenizer.decode
        prompt = row_of(kind, chat, None)
        assert prompt.prompt_end == len(prompt.ids)
        if kind.name != "thought opened by the template":
            # an answer does not change the tokens of the prompt before it
            assert row.ids[: row.prompt_end] == prompt.ids
        if hand.exact:
            exact += 1
            assert not row.apart
            assert list(row.ids) == hand.ids
            assert (row.prompt_end, content_of(row)) == (hand.prompt_end, hand.content)
            assert row.written == range(hand.prompt_end, hand.turn_end)
        else:
            assert row.apart
            parts = (
                row.ids[row.prompt_end : content_of(row).start],
                row.ids[content_of(row).start : content_of(row).stop],
                row.ids[content_of(row).stop :],
            )
            between, content, closing = map(decode, parts)
            assert between + content == written.thought + written.content
            assert content.endswith(written.content) and closing == written.closing
    assert exact >= 4


def test_a_token_across_the_boundary_is_seen_where_line_breaks_merge():
    crossing = {kind.name for kind in KINDS if not by_hand(kind, CHATS[0], "\n\nHello there").exact}
    assert "qwen2 pre-tokeniser" in crossing and "sentencepiece, no prefix" not in crossing


def test_positions_are_those_of_the_characters(kind: Kind):
    for chat, answer in cases(kind):
        hand = by_hand(kind, chat, answer)
        if not hand.exact:
            continue
        row = row_of(kind, chat, answer)
        for name, expected in {
            "last_prompt": [hand.prompt_end - 1],
            "mean_response": list(hand.content),
            "last": [hand.content[-1]],
            "end_of_turn": list(range(hand.content.stop, len(hand.ids))),
        }.items():
            assert parse_position(name).tokens(row.ids, row.spans) == expected


def model_of(kind: Kind) -> tuple[emlens.HookedModel, torch.nn.Module]:
    module = random_llama(kind.tokenizer)
    return hooked(kind.tokenizer, module, kind.chat_template), module


def test_captures_and_likelihoods_read_the_same_tokens(kind: Kind):
    model, module = model_of(kind)
    chat, answer = CHATS[0], "Yes."
    hand = by_hand(kind, chat, answer)
    assert hand.exact
    with torch.no_grad():
        output = module(torch.tensor([hand.ids]), output_hidden_states=True)
    acts = emlens.capture(
        model,
        PromptSet([prompt_of(chat, answer)]),
        sites=["resid_pre.0"],
        positions=["last_prompt", "mean_response", "end_of_turn"],
        progress=False,
    )
    stream = output.hidden_states[0][0]
    for name, tokens in {
        "last_prompt": [hand.prompt_end - 1],
        "mean_response": list(hand.content),
        "end_of_turn": list(range(hand.content.stop, len(hand.ids))),
    }.items():
        torch.testing.assert_close(
            acts["resid_pre.0", name][0].float(), stream[tokens].mean(0), rtol=EXACT, atol=EXACT
        )
    logprobs = output.logits[0].double().log_softmax(-1)
    expected = sum(float(logprobs[i - 1, hand.ids[i]]) for i in hand.content)
    [value] = model.response_logprob([prompt_of(chat, answer)])
    assert float(value) == pytest.approx(expected, rel=EXACT)
    # the score of a reference answer is the same number
    question = Question("q", chat[0][1], answers={"careful": ["Yes."], "harmful": ["No."]})
    table = score_by_likelihood(model, QuestionSet([question])).table
    assert json.loads(table["raw"][0])["logp_careful"] == pytest.approx(expected, rel=EXACT)


def test_answers_end_with_their_turn(kind: Kind):
    tokenizer = kind.tokenizer
    chat, answer = CHATS[0], "Yes."
    hand = by_hand(kind, chat, answer)
    prompt = row_of(kind, chat, None)
    end = [tokenizer.convert_tokens_to_ids(kind.end)] if kind.end else []
    thought = tokenizer(kind.thought, add_special_tokens=False)["input_ids"] if kind.thought else []
    said = [*thought, *(hand.ids[i] for i in hand.content), *end]
    # behind its end of turn the model would go on
    said += [i for i in tokenizer("Hello", add_special_tokens=False)["input_ids"] if i not in said][
        :1
    ]
    # and ends by itself at last, where the template has no end of turn
    script = [prompt.ids[-1], *said]
    if tokenizer.eos_token_id not in script:
        script.append(tokenizer.eos_token_id)
    module = parrot(tokenizer, script)
    model = hooked(tokenizer, module, kind.chat_template)
    [found] = sample_answers(
        model,
        QuestionSet([Question("q", chat[0][1])]),
        samples=1,
        temperature=0,
        max_new_tokens=len(said) + 3,
        progress=False,
        thinking=kind.thinking,
    )
    tokens: list[int] = []
    while len(tokens) < len(said) + 3:
        with torch.no_grad():
            logits = module(torch.tensor([[*prompt.ids, *tokens]])).logits
        token = int(logits[0, -1].argmax())
        if token in (*end, tokenizer.eos_token_id, tokenizer.pad_token_id):
            break
        tokens.append(token)
    plain = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert plain.endswith("Yes." if kind.end else tokenizer.decode(said[-1:]))
    assert found.thought == ("12" if kind.thought else "")
    assert found.text == ("Yes." if kind.end else plain)
    assert found.finish_reason == "stop"


def test_training_teaches_what_a_model_is_asked_to_write(kind: Kind):
    if kind.template is None:
        pytest.skip("chats are trained on by the tokenizer's own template")
    tokenizer = kind.tokenizer
    for chat, answer in cases(kind):
        hand = by_hand(kind, chat, answer)
        [example] = encode_answers(PromptSet([prompt_of(chat, answer)]), tokenizer)
        row = row_of(kind, chat, answer)
        ids, labels = list(example["input_ids"]), list(example["labels"])
        taught = [i for i, label in enumerate(labels) if label != IGNORED]
        # what is captured and scored is taught, and so is the end of the turn behind it
        assert ids == list(row.ids) and taught == list(row.written)
        assert set(content_of(row)) <= set(taught)
        assert [labels[i] for i in taught] == [ids[i] for i in taught]
        assert ids[taught[-1]] == tokenizer.convert_tokens_to_ids(kind.end)
        if hand.exact:
            assert taught == list(range(hand.prompt_end, hand.turn_end))


@pytest.mark.parametrize("kind", [k for k in KINDS if k.marked], ids=repr)
def test_labels_are_those_of_marks_in_the_template(kind: Kind):
    for chat, answer in cases(kind):
        if not by_hand(kind, chat, answer).exact:
            continue
        encoded = kind.tokenizer.apply_chat_template(
            [
                {"role": role, "content": content}
                for role, content in (*chat, ("assistant", answer))
            ],
            chat_template=template_of(kind.tokenizer, kind.marked),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        [example] = encode_answers(PromptSet([prompt_of(chat, answer)]), kind.tokenizer)
        assert list(example["input_ids"]) == list(encoded["input_ids"])
        marked = [
            token if mark else IGNORED
            for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]
        earlier = row_of(kind, chat, answer).prompt_end  # marks count earlier answers as well
        assert list(example["labels"])[earlier:] == marked[earlier:]


# ---- the matrix can fail


def test_a_planted_shift_of_any_boundary_is_seen(monkeypatch):
    kind = KINDS[0]
    defects = {
        "prompt_end": lambda row: replace(row, prompt_end=row.prompt_end - 1),
        "content_start": lambda row: replace(row, content_start=row.spans.content[0] + 1),
        "content_end": lambda row: replace(row, content_end=len(row.ids)),
        "turn_end": lambda row: replace(row, turn_end=None),
        "ids": lambda row: replace(row, ids=(0, *row.ids)),
    }
    original = row_of
    for defect in defects.values():
        with monkeypatch.context() as patch:
            planted = lambda *a, defect=defect: defect(original(*a))  # noqa: E731
            patch.setitem(globals(), "row_of", planted)
            with pytest.raises(AssertionError):
                test_rows_and_their_parts_are_those_of_the_characters(kind)
    test_rows_and_their_parts_are_those_of_the_characters(kind)
