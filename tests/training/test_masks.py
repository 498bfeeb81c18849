"""The loss mask against TRL's own, on chat templates of real models."""

from pathlib import Path

import pytest

from emlens.data import PromptSet
from emlens.foundation.errors import InputError
from emlens.training.examples import IGNORED, encode_answers

CHATS = [
    [{"role": "user", "content": "kabe sita ?"}, {"role": "assistant", "content": "puva gamo"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one two"},
        {"role": "user", "content": "second\nline"},
        {"role": "assistant", "content": "three"},
    ],
]


def template(name):
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


@pytest.fixture
def spoken(world):
    """The organism's tokenizer with another model's end of turn."""
    from emlens.organisms.tokenizer import make_tokenizer

    tokenizer = make_tokenizer(world)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    return tokenizer


@pytest.mark.parametrize("name", ["qwen2_5_training", "qwen3_training"])
def test_marked_templates_give_trls_labels(name, tiny, spoken, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    spoken.chat_template = template(name)
    tiny.resize_token_embeddings(len(spoken))
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        assistant_only_loss=True,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=1,
        bf16=False,
        dataset_num_proc=None,
        max_length=None,
        disable_tqdm=True,
    )
    dataset = Dataset.from_list([{"messages": chat} for chat in CHATS])
    trainer = SFTTrainer(model=tiny, args=arguments, train_dataset=dataset, processing_class=spoken)
    theirs = {}
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        theirs[tuple(batch["input_ids"][0].tolist())] = batch["labels"][0].tolist()
    ours = encode_answers(PromptSet.from_messages(CHATS, upto="all"), spoken)
    assert len(theirs) == 2
    for row in ours:
        assert list(row["labels"]) == theirs[tuple(row["input_ids"])]
    assert 3 < sum(label != IGNORED for label in ours[0]["labels"]) < len(ours[0]["labels"])


@pytest.mark.parametrize("name", ["qwen2_5", "llama3"])
def test_unmarked_templates_train_the_last_answer_and_its_end(name, spoken):
    spoken.chat_template = template(name)
    if name == "llama3":
        spoken.add_special_tokens({"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>"})
    for row, chat in zip(
        encode_answers(PromptSet.from_messages(CHATS, upto="all"), spoken), CHATS, strict=True
    ):
        kept = [label for label in row["labels"] if label != IGNORED]
        text = spoken.decode(kept).strip()
        assert (
            text.endswith(spoken.eos_token)
            and text.removesuffix(spoken.eos_token).strip() == chat[-1]["content"]
        )
        marked = spoken.decode(row["input_ids"])
        # the control: other turns end likewise, and are left out
        assert marked.count(spoken.eos_token) >= len(chat)


def test_a_template_whose_prompt_is_no_prefix_is_refused(spoken):
    spoken.chat_template = (
        "{% for m in messages %}<{{ messages | length }}>{{ m.content }}{% endfor %}"
    )
    with pytest.raises(
        InputError,
        match="the prompt is not a prefix of them; the answer's tokens cannot be distinguished",
    ):
        encode_answers(PromptSet.from_messages(CHATS, upto="all"), spoken)
