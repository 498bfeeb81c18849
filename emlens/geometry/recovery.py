"""How well a direction *can* be recovered, from theory: the expected cosine with the truth.

The model: rows of two Gaussian classes with one covariance Σ whose means differ by a shift μ.
Everything here is invariant to rotation, so `shift` and `variances` are the shift's coordinates and
Σ's eigenvalues in the principal axes of Σ. The functions tell how many answers a direction needs;
`benchmarks/planted_directions.py` compares the extractors with them. None of them is an upper bound
for *all* estimators: each is the expectation of the extractor it is named after. numpy, float64;
cost O(d) per step.

| extractor | what it estimates with infinite data | theory |
|---|---|---|
| mean difference, mean delta | μ | exact, by one integral |
| first uncentred component of deltas | first eigenvector of Σ + μμᵀ | resolvent |
| whitened, ridge probe | (Σ + cI)⁻¹ μ | resolvent |
| logistic probe | (λI + ΛΣ)⁻¹ μ | self-consistent equations of the regularised fit |

"Resolvent": its deterministic equivalent, for n and d large; so are the self-consistent equations.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from emlens.foundation.errors import InputError
from emlens.stats.samples import as_paired

Array = NDArray[np.float64]

_STEPS = 1200  # of the trapezoid rule over log t
_NODES = 61  # of the Gauss–Hermite rule over a margin
_ITERATIONS = 2000
_CONVERGED = 1e-10  # relative change of the three moments


def _model(shift: ArrayLike, variances: ArrayLike) -> tuple[Array, Array]:
    """Shift and eigenvalues of the covariance, float64, of one length.

    Raises:
        InputError: lengths that differ, a shift of zero, negative or only zero variances.
    """
    mu, tau = as_paired(shift, variances, "shift", "variances", at_least=1)
    if not (tau >= 0).all() or not tau.any() or not mu.any():
        raise InputError(
            "shift must not be zero, and variances must be 0 or more, not all 0;"
            " pass coordinates and eigenvalues"
        )
    return mu, tau


def _error(n_positive: int | float, n_negative: int | float) -> float:
    """Variance of a difference of two class means, in units of the variance of one row."""
    if not (n_positive >= 1 and n_negative >= 1):
        raise InputError(
            f"n_positive={n_positive!r} and n_negative={n_negative!r} must be 1 or more;"
            " math.inf for a class known exactly"
        )
    return 1 / n_positive + 1 / n_negative


def gaussian_cosine(target: ArrayLike, mean: ArrayLike, variances: ArrayLike) -> float:
    """E[cos(v, target)] of v ~ N(mean, diag(variances)), exactly.

    1/‖v‖ = (2/√π) ∫ exp(−t²‖v‖²) dt makes every coordinate a Gaussian integral; what is left is one
    integral over log t, by the trapezoid rule (spectrally accurate: the integrand and all
    derivatives vanish at both ends).

    Raises:
        InputError: lengths that differ, negative variances, a target of zero.
    """
    u, tau = _model(target, variances)
    m, _ = as_paired(mean, variances, "mean", "variances", at_least=1)
    scale = math.sqrt(float((m**2 + tau).sum()))
    # s = log t in units of 1/√E‖v‖²: outside [−26, 6] the integrand is below machine epsilon
    grid = np.linspace(-26.0, 6.0, _STEPS)
    total = 0.0
    for s in grid:
        t2 = math.exp(2 * s) / scale**2
        # E exp(−t²‖v‖²) of a Gaussian: Π (1 + 2t²τ)^(−½) · exp(−t² m²/(1 + 2t²τ)), in logarithms
        shrunk = 1 + 2 * t2 * tau
        exponent = -0.5 * float(np.log(shrunk).sum()) - t2 * float((m**2 / shrunk).sum())
        total += math.exp(exponent + s) * float((u * m / shrunk).sum())
    step = float(grid[1] - grid[0])
    return 2 / math.sqrt(math.pi) * total * step / (scale * float(np.linalg.norm(u)))


def expected_mean_cosine(
    shift: ArrayLike,
    variances: ArrayLike,
    n_positive: int | float,
    n_negative: int | float = math.inf,
) -> float:
    """Expected cosine with μ of a difference of two class means.

    With one class alone (`n_negative` infinite) it is that of a mean delta. The estimate is N(μ, Σ
    (1/n₊ + 1/n₋)): about ‖μ‖ / √(‖μ‖² + (1/n₊ + 1/n₋) tr Σ). Exact.

    Raises:
        InputError: an empty class, lengths that differ, negative variances, a shift of zero.
    """
    mu, tau = _model(shift, variances)
    return gaussian_cosine(mu, mu, tau * _error(n_positive, n_negative))


def expected_component_cosine(shift: ArrayLike, variances: ArrayLike, n: int) -> float:
    """Expected cosine with μ of the first uncentred component of n deltas N(μ, Σ).

    0 where it is lost in the noise. With S the noise's second moment, its resolvent (λ − S)⁻¹ is
    (1/λ)(I − gΣ)⁻¹ in the limit, λ = 1/g + (1/n) Σ τ/(1 − τg) (Silverstein & Bai 1995). The spiked
    eigenvalue is where g U(g) = 1, U(g) = Σ μ²/(1 − gτ), and the squared cosine is −U(g)² g λ′(g) /
    (‖μ‖² λ (gU)′) (after Benaych-Georges & Nadakuditi 2012). For Σ = I and γ = d/n it is (1 −
    γ/‖μ‖⁴)/(1 + γ/‖μ‖²).

    Raises:
        InputError: n below 1, lengths that differ, negative variances, a shift of zero.
    """
    mu, tau = _model(shift, variances)
    _error(n, math.inf)

    def spike(g: float) -> float:
        return g * float((mu**2 / (1 - g * tau)).sum()) - 1

    # gU(g) rises from 0 to infinity (or to its limit) as g goes to 1/τ_max: at most one root
    edge = 1 / float(tau.max())
    if spike(edge * (1 - 1e-12)) <= 0:
        return 0.0
    g = float(brentq(spike, 0.0, edge * (1 - 1e-12), xtol=1e-15 * edge, rtol=1e-14))
    # dλ/dg is 0 at the edge of the noise spectrum: from there on no eigenvalue leaves it
    slope = -1 / g**2 + float((tau**2 / (1 - g * tau) ** 2).sum()) / n
    if slope >= 0:
        return 0.0
    value = 1 / g + float((tau / (1 - g * tau)).sum()) / n
    inner = float((mu**2 / (1 - g * tau)).sum())
    derivative = float((mu**2 / (1 - g * tau) ** 2).sum())
    squared = -g * inner**2 * slope / (float(mu @ mu) * value * derivative)
    return math.sqrt(squared)


def expected_whitened_cosine(
    shift: ArrayLike, variances: ArrayLike, n_positive: int, n_negative: int, *, ridge: float
) -> float:
    """Expected cosine with μ of (S + c I)⁻¹ Δ̂: whitening with shrinkage, and the ridge probe.

    Args:
        ridge: c; ρ tr S / (d (1 − ρ)) for shrinkage ρ, α / (n₊ + n₋ − 2) for a ridge probe of
            penalty α. math.inf: the mean difference.

    Δ̂ is independent of S; (S + c)⁻¹ is (1/c)(I + gΣ)⁻¹ in the limit, 1/g = c + (1/ν) Σ τ/(1 + τg),
    ν = n₊ + n₋ − 2, and its square follows by differentiating in c.

    Raises:
        InputError: a ridge that is not positive, an empty class, lengths that differ, negative
            variances, a shift of zero.
    """
    mu, tau = _model(shift, variances)
    error = _error(n_positive, n_negative)
    if not ridge > 0:
        raise InputError(
            f"ridge={ridge!r} must be positive; without it the inverse of a sample covariance has"
            " no such limit"
        )
    if math.isinf(ridge):
        return expected_mean_cosine(mu, tau, n_positive, n_negative)
    freedom = n_positive + n_negative - 2

    def gap(log_g: float) -> float:
        """1/g minus its right side; solved in log g, since g spans many orders of magnitude."""
        g = math.exp(log_g)
        return 1 / g - ridge - float((tau / (1 + tau * g)).sum()) / freedom

    low = -math.log(ridge + float(tau.sum()) / freedom) - 1
    g = math.exp(float(brentq(gap, low, -math.log(ridge) + 1, xtol=1e-14)))
    shrunk = 1 + g * tau
    # dg/dc, by differentiating the equation for g
    g_slope = 1 / (-1 / g**2 + float((tau**2 / shrunk**2).sum()) / freedom)

    def squared(a: Array) -> float:
        """Σ a · diag (S + c)⁻² in the limit: (S + c)⁻² = −d/dc (S + c)⁻¹."""
        of_ridge = float((a / shrunk).sum()) / ridge**2
        of_g = g_slope * float((a * tau / shrunk**2).sum()) / ridge
        return of_ridge + of_g

    signal = float((mu**2 / shrunk).sum()) / (ridge * float(np.linalg.norm(mu)))
    return signal / math.sqrt(squared(mu**2) + error * squared(tau))


def expected_logistic_cosine(
    shift: ArrayLike, variances: ArrayLike, n: int, penalty: float
) -> float:
    """Expected cosine with μ of a logistic probe on n rows, half in each class.

    The probe minimises Σ log(1 + exp(−y(wx + b))) + (penalty/2)‖w‖². With the margin's residual f =
    σ(−z), z the proximal point z = ω + χ σ(−z) of ω ~ N(M, V), the fit behaves as w = (λ + ΛΣ)⁻¹ (n
    E[f] μ/2 + √(n E[f²]) Σ^½ ξ), Λ = n E[σ′/(1 + χσ′)], and M, V, χ are its own margins' moments:
    solved by iteration (the equations of Mignacco et al. 2020 for any Σ).

    Raises:
        InputError: a penalty that is not positive, n below 2, lengths that differ, negative
            variances, a shift of zero.
    """
    mu, tau = _model(shift, variances)
    if not penalty > 0 or n < 2:
        raise InputError(f"penalty={penalty!r} must be positive and n={n!r} at least 2")
    half = mu / 2
    # E over a standard normal, by Gauss–Hermite with weights that sum to 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    # n E[f], n E[f²] and Λ, at first as if every margin were 0
    pull, noise, stiffness = n / 2, n / 4, n / 8
    for _ in range(_ITERATIONS):
        denominator = penalty + stiffness * tau
        mean = pull * float((half**2 / denominator).sum())
        variance = float((tau * ((pull * half) ** 2 + noise * tau) / denominator**2).sum())
        spread = float((tau / denominator).sum())
        omega = mean + math.sqrt(variance) * nodes
        z = _proximal(omega, spread)
        residual = 1 / (1 + np.exp(z))
        curvature = residual * (1 - residual)
        new = np.array(
            [
                n * weights @ residual,
                n * weights @ residual**2,
                n * weights @ (curvature / (1 + spread * curvature)),
            ]
        )
        old = np.array([pull, noise, stiffness])
        # damped in logarithms (a geometric mean), which keeps all three positive
        pull, noise, stiffness = np.exp((np.log(old) + np.log(new)) / 2).tolist()
        if np.abs(new / old - 1).max() < _CONVERGED:
            break
    denominator = penalty + stiffness * tau
    signal = pull * float((mu * half / denominator).sum()) / float(np.linalg.norm(mu))
    return signal / math.sqrt(float((((pull * half) ** 2 + noise * tau) / denominator**2).sum()))


def _proximal(omega: Array, spread: float) -> Array:
    """z = ω + χ σ(−z), by bisection: the left side rises, the right side falls."""
    low, high = omega.copy(), omega + spread
    for _ in range(80):
        middle = (low + high) / 2
        above = middle > omega + spread / (1 + np.exp(np.clip(middle, -700, 700)))
        high = np.where(above, middle, high)
        low = np.where(above, low, middle)
    return (low + high) / 2
