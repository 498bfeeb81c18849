"""Statistics that do not know what they measure: intervals, correlations, tests, corrections, nulls, moments."""

from emlens.stats.comparisons import TestResult, cohens_d, paired_test, permutation_test, tost, welch_test
from emlens.stats.corrections import adjust_p_values
from emlens.stats.correlation import correlation_null, partial_correlation, pearson, spearman
from emlens.stats.intervals import (
    bootstrap_mean,
    cluster_bootstrap,
    nadeau_bengio_interval,
    ratio_of_means,
    t_interval,
    wilson_interval,
)
from emlens.stats.moments import StreamingMoments
from emlens.stats.nulls import NullDistribution
from emlens.stats.trends import fall_null, steepest_fall

__all__ = [
    "NullDistribution",
    "StreamingMoments",
    "TestResult",
    "adjust_p_values",
    "bootstrap_mean",
    "cluster_bootstrap",
    "cohens_d",
    "correlation_null",
    "fall_null",
    "nadeau_bengio_interval",
    "paired_test",
    "partial_correlation",
    "pearson",
    "permutation_test",
    "ratio_of_means",
    "spearman",
    "steepest_fall",
    "t_interval",
    "tost",
    "welch_test",
    "wilson_interval",
]
