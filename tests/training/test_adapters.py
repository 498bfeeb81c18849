import pytest
import torch
from safetensors.torch import load_file

from emlens.foundation.errors import InputError
from emlens.training import Recipe, Saving, fit, open_checkpoint
from emlens.training.adapters import kept_adapters

LORA = Recipe(
    method="lora",
    rank=2,
    alpha=4,
    target_modules=("q_proj",),
    learning_rate=1e-2,
    steps=5,
    batch_size=4,
    seed=3,
)


@pytest.fixture
def parent(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def test_kept_adapters_are_those_of_shorter_runs_and_load_plainly(parent, chats, tmp_path):
    fit(LORA, parent, chats, tmp_path / "out", saving=Saving(keep_every=2))
    kept = kept_adapters(tmp_path / "out")
    assert list(kept) == [2, 4]

    def stop_after_two(model, step):
        from emlens.training import StopRun

        if step == 2:
            raise StopRun("enough", note=7)

    fit(LORA, parent, chats, tmp_path / "short", callbacks=[stop_after_two])
    short, second = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "short", kept[2])
    )
    assert set(short) == set(second) and all(
        torch.equal(short[name], second[name]) for name in short
    )
    ids = torch.tensor([[5, 6, 7]])
    a, b = (open_checkpoint(path, parent)(ids).logits for path in (tmp_path / "short", kept[2]))
    assert torch.equal(a, b)
    assert not torch.equal(a, open_checkpoint(kept[4], parent)(ids).logits)
    assert kept_adapters(tmp_path / "short") == {}


def test_only_adapters_are_kept(parent, chats, tmp_path):
    with pytest.raises(
        InputError,
        match=(
            "keep_every=0 with method='lora'; pass 1 or more, and method='lora':"
            " only adapters are kept"
        ),
    ):
        fit(LORA, parent, chats, tmp_path / "out", saving=Saving(keep_every=0))
    full = Recipe(method="full", learning_rate=1e-2, steps=2, batch_size=4)
    with pytest.raises(InputError, match="keep_every=1 with method='full'"):
        fit(full, parent, chats, tmp_path / "out", saving=Saving(keep_every=1))
    assert not (tmp_path / "out").exists()
