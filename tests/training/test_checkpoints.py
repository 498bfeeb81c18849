from pathlib import Path

import pytest
import tiny_models
import torch

from emlens.foundation import InputError
from emlens.training import open_checkpoint


def test_full_checkpoints_and_adapters_open_as_saved(tmp_path: Path) -> None:
    parent = tiny_models.build(tmp_path / "parent")
    adapter = tiny_models.build_adapter(tmp_path / "adapter", parent)
    ids = torch.tensor([[7, 8, 9]])
    plain, adapted = open_checkpoint(parent), open_checkpoint(adapter, parent)
    assert not plain.training and next(plain.parameters()).dtype == torch.float32
    assert not torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
    with adapted.disable_adapter():
        assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_an_adapter_needs_its_parent(tmp_path: Path, unchecked: None) -> None:
    adapter = tiny_models.build_adapter(
        tmp_path / "adapter", tiny_models.build(tmp_path / "parent")
    )
    with pytest.raises(
        InputError, match="is an adapter; pass parent=, the checkpoint it was trained on"
    ):
        open_checkpoint(adapter)
