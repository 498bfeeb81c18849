import math

import numpy as np
import pytest
import scipy.linalg
import torch

from emlens import EmlensError
from emlens.geometry import weight_update, weight_update_angles
from emlens.geometry.weight_updates import WeightUpdate, weight_update_cosine

TIGHT = 1e-12


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A1, B1, A2, B2 = rows(4, 20), rows(15, 4, seed=1), rows(3, 20, seed=2), rows(15, 3, seed=3)


def test_it_is_the_svd_of_the_product():
    update, product = weight_update(A1, B1, 0.5), 0.5 * B1 @ A1
    np.testing.assert_allclose(
        update.singular_values, np.linalg.svd(product.numpy())[1][:4], rtol=TIGHT
    )
    torch.testing.assert_close(
        update.left * update.singular_values @ update.right.T, product, atol=TIGHT, rtol=0
    )
    for side in (update.left, update.right):
        torch.testing.assert_close(
            side.T @ side, torch.eye(4, dtype=torch.float64), atol=TIGHT, rtol=0
        )
    assert update.rank == 4 and float(update.norm) == pytest.approx(float(product.norm()))
    negative = weight_update(A1, B1, -0.5)
    torch.testing.assert_close(
        negative.left * negative.singular_values @ negative.right.T, -product, atol=TIGHT, rtol=0
    )


@pytest.mark.parametrize("k", [None, 2])
def test_angles_agree_with_those_of_the_products(k):
    first, second = weight_update(A1, B1), weight_update(A2, B2, 3.0)
    for side, transpose in (("output", False), ("input", True)):
        spans = []
        for product, rank in ((B1 @ A1, 4), (B2 @ A2, 3)):
            matrix = product.T if transpose else product
            spans.append(np.linalg.svd(matrix.numpy())[0][:, : k or rank])
        expected = np.sort(scipy.linalg.subspace_angles(*spans))
        np.testing.assert_allclose(
            weight_update_angles(first, second, side=side, k=k), expected, atol=1e-10
        )


def test_cosine_agrees_with_that_of_the_products():
    first, second = weight_update(A1, B1, 0.5), weight_update(A2, B2, 3.0)
    expected = torch.nn.functional.cosine_similarity(
        (B1 @ A1).flatten(), (B2 @ A2).flatten(), dim=0
    )
    assert float(weight_update_cosine(first, second)) == pytest.approx(float(expected), abs=TIGHT)
    assert float(weight_update_cosine(first, weight_update(A1, -2 * B1))) == pytest.approx(-1)


def test_what_two_adapters_share_is_found():
    written = rows(15, 1, seed=9)
    first, second = (
        weight_update(rows(2, 20, seed=4), torch.cat([written, rows(15, 1, seed=5)], 1)),
        weight_update(rows(1, 20, seed=6), written),
    )
    assert float(weight_update_angles(first, second, side="output")) < 1e-7
    assert float(weight_update_angles(first, second, side="input")) > 0.5
    # one span, other columns: B matrices differ, updates read alike
    by_factor = torch.linalg.qr(B1).Q.T @ torch.linalg.qr(B1 @ rows(4, 4, seed=7)).Q
    assert float((torch.linalg.svdvals(by_factor) - 1).abs().max()) < TIGHT


def test_layers_are_a_batch_and_dtypes_follow():
    a, b = rows(3, 2, 10).float(), rows(3, 8, 2, seed=1).float()
    layers, other = weight_update(a, b), weight_update(a.flip(0), b)
    assert layers.left.shape == (3, 8, 2) and layers.left.dtype == torch.float32
    angles = weight_update_angles(layers, other, side="input")
    assert angles.shape == (3, 2) and weight_update_cosine(layers, other).shape == (3,)
    assert float(angles[1].max()) < 1e-6 < float(angles[0].min())  # the middle layer has one A
    one = weight_update(a[2], b[2])
    torch.testing.assert_close(layers.singular_values[2], one.singular_values)
    torch.testing.assert_close(layers.right[2], one.right)


def test_rank_is_numerical():
    low = weight_update(torch.cat([A1[:2], A1[:2] @ rows(20, 20) * 0]), B1)
    assert low.rank == 2 and low.basis("output").shape == (15, 2)
    gauge = torch.diag(torch.tensor([1e-6, 1, 1, 1e6], dtype=torch.float64))
    assert weight_update(gauge @ A1, B1 @ torch.linalg.inv(gauge)).rank == 4


def test_a_real_adapter_is_read_as_peft_stores_it():
    peft = pytest.importorskip("peft")
    module = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    model = peft.get_peft_model(
        module,
        peft.LoraConfig(
            r=2, lora_alpha=3, use_rslora=True, target_modules=["0"], init_lora_weights=False
        ),
    )
    layer = model.base_model.model[0]
    update = weight_update(
        layer.lora_A["default"].weight, layer.lora_B["default"].weight, 3 / math.sqrt(2)
    )
    torch.testing.assert_close(
        update.left * update.singular_values @ update.right.T,
        layer.get_delta_weight("default").detach(),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: weight_update(A1, B2),
            (
                r"a has shape \(4, 20\) and b \(15, 3\); pass A \(r, d_in\) and B \(d_out,"
                r" r\) of one adapter"
            ),
        ),
        (lambda: weight_update(A1[None], B1), r"a has shape \(1, 4, 20\) and b \(15, 4\)"),
        (lambda: weight_update(A1[0], B1), r"a has shape \(20,\); pass the factor A"),
        (lambda: weight_update(A1, B1[0]), r"b has shape \(4,\); pass the factor B"),
        (lambda: weight_update(A1, B1, 0.0), r"scale=0.0 makes no update; pass alpha / r"),
        (lambda: weight_update(A1, B1, math.nan), "scale=nan makes no update"),
        (
            lambda: weight_update(A1, 0 * B1),
            "the update BA is zero, as at the start of training; it spans nothing",
        ),
        (
            lambda: weight_update(torch.stack([A1, A1]), torch.stack([B1, 0 * B1])),
            r"the update BA is zero at batch index \(1,\)",
        ),
        (
            lambda: weight_update(A1, B1).basis("rows"),
            "side='rows' is unknown; pass 'output' for what the update writes",
        ),
        (
            lambda: weight_update(A1, B1).basis("input", 5),
            "k=5 must be an integer from 1 to the rank of the update, 4",
        ),
        (lambda: weight_update(A1, B1).basis("input", True), "k=True must be an integer"),
        (
            lambda: weight_update_angles(
                weight_update(A1, B1), weight_update(A2, B2), side="input", k=4
            ),
            "k=4 must be .* the rank of the update, 3",
        ),
        (
            lambda: weight_update_angles(
                weight_update(A1, B1), weight_update(A1, B1[:9]), side="output"
            ),
            "a lies in 15 dimensions and b in 9",
        ),
        (
            lambda: weight_update_cosine(weight_update(A1, B1), weight_update(A1, B1[:9])),
            r"the updates have shapes \(15, 20\) and \(9, 20\)",
        ),
    ],
)
def test_refusals(unchecked, call, message):
    with pytest.raises(EmlensError, match=message):
        call()
    assert isinstance(weight_update(A1, B1), WeightUpdate)
