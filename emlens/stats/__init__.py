"""Statistics that do not know what they measure.

Intervals, correlations, tests, corrections, nulls, moments.
"""

from emlens.stats.bootstrap import (
    bootstrap_mean,
    cluster_bootstrap,
    hierarchical_bootstrap,
    ratio_of_means,
)
from emlens.stats.change_points import change_point
from emlens.stats.comparisons import paired_test, permutation_test, tost, welch_test
from emlens.stats.corrections import adjust_p_values, max_statistic_p
from emlens.stats.correlation import correlation_null, partial_correlation, pearson, spearman
from emlens.stats.cosines import cosine_of_means
from emlens.stats.effects import cohens_d_interval
from emlens.stats.event_order import order_of_events
from emlens.stats.fronts import pareto_front
from emlens.stats.intervals import nadeau_bengio_interval, t_interval, wilson_interval
from emlens.stats.matched import matched_loss_test
from emlens.stats.matrices import mantel_test
from emlens.stats.nulls import NullDistribution
from emlens.stats.ranks import rank_sum_test, signed_rank_test
from emlens.stats.spread import f_test
from emlens.stats.tables import compare_groups

__all__ = [
    "NullDistribution",
    "adjust_p_values",
    "bootstrap_mean",
    "change_point",
    "cluster_bootstrap",
    "cohens_d_interval",
    "compare_groups",
    "correlation_null",
    "cosine_of_means",
    "f_test",
    "hierarchical_bootstrap",
    "mantel_test",
    "matched_loss_test",
    "max_statistic_p",
    "nadeau_bengio_interval",
    "order_of_events",
    "paired_test",
    "pareto_front",
    "partial_correlation",
    "pearson",
    "permutation_test",
    "rank_sum_test",
    "ratio_of_means",
    "signed_rank_test",
    "spearman",
    "t_interval",
    "tost",
    "welch_test",
    "wilson_interval",
]
