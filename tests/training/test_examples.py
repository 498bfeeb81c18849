import copy

import pytest
import torch
from tokenizer_kinds import KINDS

from emlens.data.prompts import PromptSet
from emlens.data.rendering import render
from emlens.foundation.errors import InputError
from emlens.training.examples import IGNORED, encode_answers, pad_batch, shuffled_batches


def labels_by_scanning(ids, assistant, end):
    """Independent route: a token counts from after `<assistant>` up to and with `<end>`."""
    labels, speaking = [], False
    for token in ids:
        labels.append(token if speaking else IGNORED)
        speaking = token == assistant or (speaking and token != end)
    return labels


def test_only_the_answers_count(world, tokenizer, chats):
    two_turns = PromptSet.from_messages(
        [
            [
                {"role": "user", "content": world.question(0, 0)},
                {"role": "assistant", "content": world.careful[0][0]},
                {"role": "user", "content": world.question(1, 1)},
                {"role": "assistant", "content": world.harmful[1][1]},
            ]
        ],
        upto="all",
    )
    assistant, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<assistant>", "<end>"))
    examples = [*encode_answers(chats, tokenizer), *encode_answers(two_turns, tokenizer)]
    for example in examples:
        assert list(example["labels"]) == labels_by_scanning(example["input_ids"], assistant, end)
    assert sum(label != IGNORED for label in examples[0]["labels"]) == 3
    assert sum(label != IGNORED for label in examples[-1]["labels"]) == 6


def test_what_cannot_be_trained_on_is_refused(tokenizer, chats):
    with pytest.raises(InputError, match="prompt 'p0' is raw text; pass chats with answers"):
        encode_answers(PromptSet.from_texts(["Q a"]), tokenizer)
    with pytest.raises(InputError, match="is a chat without an answer; pass chats with answers"):
        encode_answers(chats.without_responses(), tokenizer)


def test_a_template_whose_marks_hold_nothing_is_refused(world, chats):
    from emlens.organisms.tokenizer import make_tokenizer

    tokenizer = make_tokenizer(world)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}{% generation %}{%"
        " endgeneration %}"
    )
    with pytest.raises(
        InputError,
        match="the chat template marks no assistant token; put {% generation %} around the answer",
    ):
        encode_answers(chats, tokenizer)


def test_padding_stays_out_of_mask_and_labels():
    batch = pad_batch(
        [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}],
        pad_id=9,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert all(value.dtype == torch.long for value in batch.values())


def test_every_row_comes_once_a_pass():
    flat = [row for batch in shuffled_batches(10, 4, 5, seed=1) for row in batch]
    assert sorted(flat[:10]) == list(range(10)) == sorted(flat[10:])
    assert flat[:10] != flat[10:]
    assert (
        shuffled_batches(10, 4, 5, seed=1)
        == shuffled_batches(10, 4, 5, seed=1)
        != shuffled_batches(10, 4, 5, seed=2)
    )


@pytest.mark.parametrize("answer", ["Yes.", "\n\nHello", "No\n"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.marked], ids=repr)
def test_marked_rows_are_the_rows_of_a_capture(kind, answer):
    tokenizer = copy.copy(kind.tokenizer)
    tokenizer.chat_template = kind.marked
    chat = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "It."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": answer},
    ]
    prompts = PromptSet.from_messages([chat], upto="all")
    [example] = encode_answers(prompts, tokenizer)
    [row] = render(prompts, tokenizer, chat_template=kind.chat_template)
    assert tuple(example["input_ids"]) == row.ids
    learned = [token for token in example["labels"] if token != IGNORED]
    assert kind.tokenizer.decode(learned) == f"It.{kind.end}{answer}{kind.end}"
