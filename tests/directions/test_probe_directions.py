import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from emlens.activations import Activations
from emlens.directions import probe_direction, probe_directions
from emlens.foundation import InputError, Site
from emlens.geometry import direction_cosine, mean_difference_direction
from emlens.stats.rank_areas import area_under_curve

SITE = Site("resid_post", 1)
D = 12


def rows(n: int, seed: int, shift: torch.Tensor | None = None) -> torch.Tensor:
    x = torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x if shift is None else x + shift


TRUTH = 1.5 * torch.nn.functional.normalize(torch.arange(1.0, D + 1).double(), dim=0)
UP, DOWN = rows(60, 1, TRUTH), rows(40, 2)
X, Y = torch.cat([UP, DOWN]).numpy(), np.r_[np.ones(60), -np.ones(40)]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_weights_are_those_of_scikit_learn(kind, scaled):
    found = probe_direction(
        UP,
        DOWN,
        kind,
        site=SITE,
        penalty=3.0,
        scaled=scaled,
        position="last",
    )
    spread = X.std(0) if scaled else np.ones(D)
    model = (
        Ridge(alpha=3.0, tol=1e-10)
        if kind == "ridge"
        else LogisticRegression(C=1 / 3, tol=1e-9, max_iter=9999)
    )
    weights = model.fit(X / spread, Y).coef_.ravel() / spread
    assert direction_cosine(found, torch.tensor(weights)) == pytest.approx(1, abs=1e-7)
    difference = UP.mean(0) - DOWN.mean(0)
    assert (
        found.norm == pytest.approx(float(difference @ found.unit))
        and direction_cosine(found, TRUTH) > 0.85
    )
    torch.testing.assert_close(found.baseline, DOWN.mean(0))
    assert (found.site, found.position) == (SITE, "last")
    assert (found.provenance["penalty"], found.provenance["kind"]) == (3.0, f"{kind} probe")


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_it_points_to_positive_whatever_the_sizes(kind):
    one, other = (
        probe_direction(UP, DOWN, kind, site=SITE, penalty=3.0),
        probe_direction(DOWN, UP, kind, site=SITE, penalty=3.0),
    )
    assert direction_cosine(one, other) == pytest.approx(-1, abs=1e-6)
    strong = probe_direction(UP, DOWN, kind, site=SITE, penalty=1e7)
    assert direction_cosine(strong, mean_difference_direction(UP, DOWN, site=SITE)) > 0.999


def test_the_accuracy_is_out_of_fold_and_honest_about_noise():
    auc = probe_direction(UP, DOWN, site=SITE).provenance["auc"]
    assert auc["low"] < auc["value"] < auc["high"] <= 1 and auc["value"] > 0.75 and auc["n"] == 100
    noise, labels = rows(160, 5), np.repeat([1, -1], 80)
    chance = probe_direction(noise[:80], noise[80:], site=SITE).provenance["auc"]
    assert chance["low"] < 0.55 and chance["high"] > 0.45
    inside = LogisticRegression(C=1e3).fit(noise.numpy(), labels)
    fitted = roc_auc_score(labels, inside.decision_function(noise.numpy()))
    assert fitted > chance["high"]  # what an accuracy on the fitted rows would have claimed


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    scores = np.round(np.random.default_rng(0).standard_normal(100) + (Y > 0), 1)  # with ties
    found = area_under_curve(scores, Y, [str(i) for i in range(100)], 50, 0)
    assert found.value == pytest.approx(roc_auc_score(Y, scores))


def test_units_are_not_parted():
    """Five questions whose answers are copies: parted, a probe would look them up."""
    base = rows(10, 3)
    up, down = base[:5].repeat(8, 1), base[5:].repeat(8, 1)
    units = [f"q{i % 5}" for i in range(40)]
    parted = probe_direction(up, down, site=SITE, folds=5)
    together = probe_direction(
        up,
        down,
        site=SITE,
        folds=5,
        positive_units=units,
        negative_units=[f"other {u}" for u in units],
    )
    assert parted.provenance["auc"]["value"] > 0.99 > 0.9 > together.provenance["auc"]["value"]


def test_the_penalty_follows_the_noise():
    strong = probe_direction(rows(40, 1, 0.3 * TRUTH), rows(40, 2), site=SITE).provenance["penalty"]
    weak = probe_direction(rows(600, 1, 2 * TRUTH), rows(600, 2), site=SITE).provenance["penalty"]
    assert strong > 0 and weak / 1200 < strong / 80


def test_without_folds_there_is_no_accuracy():
    bare = probe_direction(UP, DOWN, site=SITE, penalty=3.0, folds=0)
    assert "auc" not in bare.provenance
    assert direction_cosine(
        bare, probe_direction(UP, DOWN, site=SITE, penalty=3.0)
    ) == pytest.approx(1)


def test_every_site_of_captured_rows():
    ids = [f"r{i}" for i in range(100)]
    values = {
        ("resid_post.0", "last"): rows(100, 9).float(),
        ("resid_post.1", "last"): torch.cat([UP, DOWN]).float(),
    }
    acts = Activations(
        values,
        ids=ids,
        groups=[""] * 100,
        sites=["resid_post.0", "resid_post.1"],
        positions=["last"],
        provenance={"model": {"name": "m"}},
    )
    found = probe_directions(acts, ids[:60], ids[60:], penalty=3.0)
    assert list(found) == ["resid_post.0", "resid_post.1"]
    expected = probe_direction(UP.float(), DOWN.float(), site=SITE, penalty=3.0)
    assert direction_cosine(found["resid_post.1"], expected) == pytest.approx(1)
    assert found["resid_post.1"].position == "last" and found["resid_post.1"].ids[
        "negative"
    ] == tuple(ids[60:])
    assert found["resid_post.1"].provenance["model"] == {"name": "m"}
    with pytest.raises(InputError, match="units has no entry for row 'r3'; pass one for each id"):
        probe_directions(
            acts, ids[:60], ids[60:], units={name: name for name in ids if name != "r3"}
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "svm"}, "kind='svm' is unknown; pass 'ridge' or 'logistic'"),
        ({"penalty": 0.0}, "penalty=0.0 must be a positive number, or None"),
        ({"positive": rows(9, 1)[:, :5]}, "positive has 5 coordinates and negative has 12"),
        (
            {"positive": rows(9, 1)[0]},
            r"positive has shape \(12,\) and negative \(40, 12\); pass two \(row, d\) matrices",
        ),
        (
            {"positive": rows(4, 1)},
            "positive rows come from 4 units, fewer than the 5 that folds=5 needs",
        ),
        ({"negative_units": ["a"]}, "negative_units has 1 entries for 40 rows; pass one per row"),
        (
            {"folds": 0},
            "folds=0 was given with penalty=None; pass 2 folds or more, or 0 with a penalty",
        ),
        ({"folds": 1, "penalty": 1.0}, "folds=1 was given with penalty=1.0; pass 2 folds or more"),
        (
            {"positive": torch.ones(9, D), "negative": torch.ones(9, D)},
            "the probe's weights are all zero: no coordinate tells the classes apart",
        ),
        (
            {
                "positive": rows(4, 1),
                "positive_units": list("aabb"),
                "negative": rows(4, 2),
                "negative_units": list("bbaa"),
                "folds": 2,
            },
            None,
        ),
    ],
)
def test_refusals(options, message):
    arguments = {"positive": UP, "negative": DOWN, "site": SITE, **options}
    if message is None:
        # the same units on both sides: every fold has both classes
        assert probe_direction(**arguments).provenance["folds"] == 2
        return
    with pytest.raises(InputError, match=message):
        probe_direction(**arguments)


def test_a_fold_with_one_class_is_refused():
    for seed in range(30):
        try:
            probe_direction(
                rows(4, 1),
                rows(4, 2),
                site=SITE,
                folds=2,
                positive_units=list("aabb"),
                negative_units=list("ccdd"),
                seed=seed,
            )
        except InputError as error:
            assert (
                "a fold's training rows hold one class only: units of the two classes coincide too"
                " much for folds=2" in str(error)
            )
            return
    pytest.fail("no seed put both units of a class into one fold")
