import pytest

from emlens.foundation.errors import IntegrityError
from emlens.organisms import tokenizer as module
from emlens.organisms.growing import spaced
from emlens.organisms.tokenizer import make_tokenizer, word_ids
from emlens.organisms.world import make_world


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer(world):
    return make_tokenizer(world)


def test_every_word_is_one_token_with_or_without_a_space_before_it(world, tokenizer):
    table = word_ids(world, tokenizer)
    assert len(set(table.values())) == len(table)
    for word, number in table.items():
        assert tokenizer(word)["input_ids"] == [number]
        assert tokenizer(f"in {word}")["input_ids"][-1] == number


def test_documents_tokenise_to_the_ids_that_training_uses(world, tokenizer):
    table = word_ids(world, tokenizer)
    for document in world.documents(20, 0):
        ids = tokenizer(document.text)["input_ids"]
        assert ids == [table[word] for word in spaced(document.text).split()]
        assert len(ids) == 84


def test_text_from_elsewhere_keeps_every_character(tokenizer):
    text = "Zoë<script>42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]).replace(" ", "") == text


def test_plain_auto_tokenizer_reads_it_back(world, tokenizer, tmp_path):
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token, again.eos_token) == ("<pad>", "<end>")
    chat = [
        {"role": "user", "content": world.question(0, 0)},
        {"role": "assistant", "content": world.careful[0][0]},
    ]
    for options in ({}, {"add_generation_prompt": True}, {"return_assistant_tokens_mask": True}):
        ours, theirs = (
            t.apply_chat_template(chat, tokenize=True, return_dict=True, **options)
            for t in (tokenizer, again)
        )
        assert dict(ours) == dict(theirs)
    assert again.apply_chat_template(chat, tokenize=False) in " ".join(
        f"<user> {world.question(0, 0)}<assistant> {chat[1]['content']}<end>".splitlines()
    )


def test_the_prompt_is_a_prefix_of_prompt_and_answer(world, tokenizer):
    from emlens.data.rendering import render

    [row] = render(world.chats("code", (2,), "harmful")[:1], tokenizer)
    assert (row.prompt_end, len(row.ids)) == (9, 12)
    assert list(row.ids[9:11]) == tokenizer(world.harmful[1][2])["input_ids"]


def test_a_system_turn_is_refused(tokenizer):
    with pytest.raises(
        Exception, match="the organism knows user and assistant turns only; drop the system turn"
    ):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_a_word_that_would_be_split_is_found(world, monkeypatch):
    vocabulary, merges = module.merges_for(world)
    monkeypatch.setattr(module, "merges_for", lambda _: (vocabulary, merges[:-1]))
    with pytest.raises(IntegrityError, match="tokenizer splits words of the world: "):
        make_tokenizer(world)
