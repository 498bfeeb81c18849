import torch

from emlens.foundation.provenance import (
    hardware,
    hash_json,
    hash_tensors,
    library_versions,
)


def test_tensor_hash_sees_names_dtype_shape_and_bytes_but_not_layout() -> None:
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    same = {"b": torch.ones(1), "a": base.T.contiguous().T}
    assert hash_tensors({"a": base, "b": torch.ones(1)}) == hash_tensors(same)
    others = [
        {"a": base},
        {"c": base},
        {"a": base.reshape(3, 2)},
        {"a": base.double()},
        {"a": base.bfloat16()},
        {"a": base + torch.tensor([[0, 0, 0], [0, 0, 1e-6]])},
        {"a": torch.tensor(True)},
        {"a": torch.zeros(0)},
    ]
    assert len({hash_tensors(tensors) for tensors in others}) == len(others)


def test_json_hash_does_not_depend_on_key_order() -> None:
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1}) != hash_json({"a": 2, "b": 1})


def test_versions_and_hardware() -> None:
    versions = library_versions(("torch", "no-such-distribution"))
    assert set(versions) == {"torch"} and torch.__version__.startswith(
        versions["torch"].partition("+")[0]
    )
    facts = hardware()
    assert facts["threads"] == torch.get_num_threads() and facts["cores"] >= 1
