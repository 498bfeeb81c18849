import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from emlens import EmlensError
from emlens.geometry import Subspace, top_k_subspace
from emlens.replication.released_columns import delta_columns, k_comparison, prompt_columns

PRINTED = 2e-5  # the released numbers are float32, of norms up to 1e3


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TRAIN, EVAL = rows(60, 12) * torch.arange(1, 13) + 4, rows(25, 12, seed=1) * torch.arange(1, 13) + 2


def test_columns_on_shifts_agree_with_scikit_learn_and_a_loop():
    found, pca = (
        delta_columns(EVAL, top_k_subspace(TRAIN, 3, center=True)),
        PCA(3).fit(TRAIN.numpy()),
    )
    x = EVAL.numpy()
    moved, lengths = x - pca.mean_, np.linalg.norm(x, axis=1)
    inside = (moved @ pca.components_.T) @ pca.components_
    rebuilt, left = inside + pca.mean_, np.linalg.norm(moved - inside, axis=1)
    distance = ((moved @ pca.components_.T) ** 2 / pca.explained_variance_).sum(1)
    cosine = x @ pca.mean_ / lengths / np.linalg.norm(pca.mean_)
    expected = {
        "pca_projection_norm": np.linalg.norm(inside, axis=1),
        "pca_residual_norm": left,
        "pca_projection_fraction": np.linalg.norm(inside, axis=1) / lengths,
        "pca_projection_fraction_raw": np.linalg.norm(inside, axis=1) / lengths,
        "pca_projection_fraction_centered": (
            np.linalg.norm(inside, axis=1) / np.linalg.norm(moved, axis=1)
        ),
        "pca_residual_fraction": left / lengths,
        "pca_residual_fraction_raw": left / lengths,
        "pca_residual_fraction_centered": left / np.linalg.norm(moved, axis=1),
        "pca_explained_l2_fraction_raw": 1 - (left / lengths) ** 2,
        "pca_explained_l2_fraction_centered": 1 - left**2 / (moved**2).sum(1),
        "pca_cosine_reconstructed_eval_delta": (
            (rebuilt * x).sum(1) / lengths / np.linalg.norm(rebuilt, axis=1)
        ),
        "pca_mahalanobis_distance": distance**0.5,
        "pca_mahalanobis_distance_sq": distance,
        "mean_delta_cosine": cosine,
        "mean_delta_scalar_projection": cosine * lengths,
        "mean_delta_projection_fraction": cosine,
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_columns_on_prompts_agree_with_a_loop():
    space = top_k_subspace(TRAIN, 0.95, center=True)
    found, pca = prompt_columns(EVAL, space, seed=3), PCA(space.k).fit(TRAIN.numpy())
    moved = EVAL.numpy() - pca.mean_
    inside, lengths = (
        np.linalg.norm(moved @ pca.components_.T, axis=1),
        np.linalg.norm(moved, axis=1),
    )
    np.testing.assert_allclose(found["prompt_pca_projection_norm"], inside)
    np.testing.assert_allclose(found["prompt_pca_projection_fraction"], inside / lengths)
    np.testing.assert_allclose(found["prompt_pca_residual_norm"], np.sqrt(lengths**2 - inside**2))
    np.testing.assert_allclose(
        found["prompt_pca_residual_fraction"], np.sqrt(1 - (inside / lengths) ** 2)
    )
    np.testing.assert_allclose(found["prompt_pca_explained_l2_fraction"], (inside / lengths) ** 2)
    x = EVAL.numpy()
    np.testing.assert_allclose(
        found["prompt_train_mean_cosine_similarity"],
        x @ pca.mean_ / np.linalg.norm(x, axis=1) / np.linalg.norm(pca.mean_),
    )
    whitened = moved @ pca.components_.T / pca.explained_variance_**0.5
    np.testing.assert_allclose(
        found["prompt_pca_mahalanobis_distance"], np.linalg.norm(whitened, axis=1)
    )


def test_the_random_control_is_that_of_a_random_subspace():
    space = top_k_subspace(rows(200, 100), 9, center=True)
    isotropic = space.mean + rows(2000, 100, seed=5)
    found = prompt_columns(isotropic, space, seed=0)
    assert float((found["random_projection_fraction"] ** 2).mean()) == pytest.approx(
        9 / 100, rel=0.05
    )
    torch.testing.assert_close(
        found["random_explained_l2_fraction"] + found["random_residual_fraction"] ** 2,
        torch.ones(2000, dtype=torch.float64),
    )
    assert torch.equal(
        found["random_projection_fraction"],
        prompt_columns(isotropic, space, seed=0)["random_projection_fraction"],
    )
    assert not torch.equal(
        found["random_projection_fraction"],
        prompt_columns(isotropic, space, seed=1)["random_projection_fraction"],
    )


def test_batches_and_dtypes():
    train, evaluation = rows(2, 30, 8).float(), rows(2, 5, 8, seed=1).float()
    spaces, one = top_k_subspace(train, 3, center=True), top_k_subspace(train[1], 3, center=True)
    for columns in (delta_columns, prompt_columns):
        whole, single = columns(evaluation, spaces), columns(evaluation[1], one)
        for name, values in whole.items():
            assert values.shape == (2, 5) and values.dtype == torch.float32
            torch.testing.assert_close(values[1], single[name], atol=1e-5, rtol=1e-5)


def column(released: list[dict], name: str) -> torch.Tensor:
    return torch.tensor([row[name] for row in released], dtype=torch.float64)


def test_released_rows_are_recomputed(released_data):
    """A released row fixes its delta and the training mean up to rotation: rebuilt in three
    dimensions, every column must come back.

    p, r: length inside and outside the subspace; D and m: length of the delta and of the mean; c
    their cosine. The angle of the reconstruction says how the mean splits, and the remaining
    columns are predictions.
    """
    file = json.loads(
        (
            released_data
            / "em-generalization"
            / "finance_to_hbp.layer_32.last_prompt_token.k0.95.json"
        ).read_text()
    )
    released = file["per_example"]
    p, r = column(released, "pca_projection_norm"), column(released, "pca_residual_norm")
    length, c = (
        r / column(released, "pca_residual_fraction_raw"),
        column(released, "mean_delta_cosine"),
    )
    m = file["mean_delta_summary"]["train_mean_delta_norm"]
    # |δ − μ|² twice
    torch.testing.assert_close(
        length**2 - 2 * c * length * m + m**2, p**2 + r**2, rtol=1e-4, atol=0
    )

    cosine = column(released, "pca_cosine_reconstructed_eval_delta")
    # of the quadratic in the length of the reconstruction
    root = (cosine**2 * length**2 - length**2 + r**2).clamp(min=0).sqrt()
    means = []
    for rebuilt in (cosine * length + root, cosine * length - root):
        z = (length**2 + r**2 - rebuilt**2) / 2  # r times the part of the delta along the residual
        first, second = (length**2 - c * length * m - p**2 - z) / p, z / r - r
        means.append(torch.stack([first, second, m**2 - first**2 - second**2], dim=1))
    mean = torch.where((means[0][:, 2:] >= means[1][:, 2:]), *means)
    assert (mean[:, 2] > 0).all()  # a mean of length m exists for every row
    mean[:, 2] = mean[:, 2].sqrt()
    deltas = mean + torch.stack([p, r, torch.zeros_like(p)], dim=1)
    n = len(released)
    basis = torch.eye(3, dtype=torch.float64)[:, :1].expand(n, 3, 1)
    space = Subspace(
        basis,
        torch.ones(n, 1).double(),
        torch.ones(n, 1).double(),
        mean,
        file["num_train"],
        1,
        "mean",
    )
    found = delta_columns(deltas[:, None, :], space)
    for name, values in found.items():
        if "mahalanobis" in name or name == "pca_residual_fraction_centered":
            continue
        torch.testing.assert_close(
            values[:, 0], column(released, name), rtol=10 * PRINTED, atol=PRINTED, msg=name
        )
    averages = {
        name.removeprefix("mean_"): value
        for name, value in file["pca_summary"].items()
        if name.startswith("mean_")
    }
    checked = 0
    for name, value in averages.items():
        if name in found and "mahalanobis" not in name:
            assert float(found[name].mean()) == pytest.approx(value, abs=1e-3)
            checked += 1
    assert checked == 8
    repeated = column(released, "pca_residual_fraction_centered")
    # as the module says
    assert torch.equal(repeated, column(released, "pca_residual_fraction_raw"))
    assert float((found["pca_residual_fraction_centered"][:, 0] - repeated).mean()) > 0.1


def test_released_prompt_rows_are_recomputed(released_data):
    file = json.loads(
        (
            released_data
            / "em-generalization"
            / "finance_to_hbp.layer_32.last_prompt_token.k0.95.json"
        ).read_text()
    )
    released = file["per_example"]
    p, r = (
        column(released, "prompt_pca_projection_norm"),
        column(released, "prompt_pca_residual_norm"),
    )
    mean = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    x = mean + torch.stack([p, r, torch.zeros_like(p)], dim=1)
    space = Subspace(
        torch.eye(3, dtype=torch.float64)[:, :1],
        torch.ones(1),
        torch.ones(1),
        mean,
        file["num_train"],
        1,
        "mean",
    )
    found = prompt_columns(x, space)
    for name in (
        "projection_norm",
        "residual_norm",
        "projection_fraction",
        "residual_fraction",
        "explained_l2_fraction",
    ):
        torch.testing.assert_close(
            found[f"prompt_pca_{name}"],
            column(released, f"prompt_pca_{name}"),
            rtol=PRINTED,
            atol=PRINTED,
        )
    assert float(found["prompt_pca_projection_fraction"].mean()) == pytest.approx(0.8117, abs=5e-5)


def test_the_table_over_k_equals_fits_of_each_k():
    table = k_comparison(TRAIN, EVAL, (1, 4, 9))
    for _, row in table.iterrows():
        found = delta_columns(EVAL, top_k_subspace(TRAIN, int(row["k"]), center=True))
        for name in (
            "pca_projection_fraction",
            "pca_residual_fraction",
            "pca_explained_l2_fraction_raw",
            "pca_cosine_reconstructed_eval_delta",
        ):
            assert row[f"mean_{name}"] == pytest.approx(float(found[name].mean()))
        assert row["mean_cosine_eval_delta_train_mean_delta"] == pytest.approx(
            float(found["mean_delta_cosine"].mean())
        )
    assert (table["mean_pca_residual_fraction"].diff().dropna() < 0).all()


def test_the_released_table_over_k_has_these_columns_and_identities(released_data):
    released = pd.read_csv(released_data / "em-generalization" / "k_comparison_summary.csv")
    ours = k_comparison(rows(60, 140) + 1, rows(9, 140) + 1, tuple(released["k"][:6]))
    assert list(ours.columns) == list(released.columns)
    for table, printed in ((released, 1.01e-4), (ours, 1e-12)):
        gain = (
            table["mean_pca_cosine_reconstructed_eval_delta"]
            - table["mean_cosine_eval_delta_train_mean_delta"]
        )
        less = table["mean_pca_projection_fraction"] - table["mean_pca_residual_fraction"]
        np.testing.assert_allclose(table["pca_vs_mean_cosine_gain"], gain, atol=printed)
        np.testing.assert_allclose(
            table["pca_projection_minus_residual_fraction"], less, atol=printed
        )
        assert (table["mean_pca_residual_fraction"].diff().dropna() < 0).all()


@pytest.mark.parametrize("columns", [delta_columns, prompt_columns])
def test_refusals(unchecked, columns):
    with pytest.raises(
        EmlensError,
        match=(
            "the subspace was fitted with center='none'; the released tables take the mean out:"
            " pass center=True"
        ),
    ):
        columns(EVAL, top_k_subspace(TRAIN, 2, center=False))
    space = top_k_subspace(TRAIN, 2, center=True)
    with pytest.raises(EmlensError, match="row 0 equals the mean of the subspace"):
        columns(space.mean[None], space)
    with pytest.raises(EmlensError, match="has 5 coordinates and the subspace has 12"):
        columns(rows(3, 5), space)
    with pytest.raises(EmlensError, match="ks is empty; pass the numbers of components"):
        k_comparison(TRAIN, EVAL, ())
    with pytest.raises(EmlensError, match="k=13 is above the rank: the 60 vectors have rank 12"):
        k_comparison(TRAIN, EVAL, (1, 13))
