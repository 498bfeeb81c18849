"""Statistics without opinion on what is measured: intervals, correlations, tests, corrections, nulls, streaming moments."""

from emlens.stats.correlation import correlation_null, partial_correlation, pearson, spearman
from emlens.stats.intervals import (
    bootstrap_mean,
    cluster_bootstrap,
    nadeau_bengio_interval,
    ratio_of_means,
    t_interval,
    wilson_interval,
)
from emlens.stats.nulls import NullDistribution

__all__ = [
    "NullDistribution",
    "bootstrap_mean",
    "cluster_bootstrap",
    "correlation_null",
    "nadeau_bengio_interval",
    "partial_correlation",
    "pearson",
    "ratio_of_means",
    "spearman",
    "t_interval",
    "wilson_interval",
]
