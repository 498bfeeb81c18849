"""Statistics that do not know what they measure: intervals, correlations, tests, corrections,
nulls, moments.
"""

from emlens.stats.bootstrap import (
    bootstrap_mean,
    cluster_bootstrap,
    hierarchical_bootstrap,
    ratio_of_means,
)
from emlens.stats.change_points import (
    ChangePoint,
    EventOrder,
    change_point,
    logistic_midpoint,
    order_of_events,
)
from emlens.stats.comparisons import paired_test, permutation_test, tost, welch_test
from emlens.stats.corrections import adjust_p_values, max_statistic_p
from emlens.stats.correlation import correlation_null, partial_correlation, pearson, spearman
from emlens.stats.cosines import cosine_of_means
from emlens.stats.effects import cohens_d, cohens_d_interval, rank_biserial
from emlens.stats.fronts import front_membership, pareto_front
from emlens.stats.intervals import (
    clopper_pearson_interval,
    nadeau_bengio_interval,
    t_interval,
    wilson_interval,
)
from emlens.stats.matched import MatchedLoss, matched_loss_test
from emlens.stats.matrices import mantel_test
from emlens.stats.moments import StreamingMoments
from emlens.stats.nulls import NullDistribution
from emlens.stats.outcomes import TestResult
from emlens.stats.ranks import rank_sum_test, signed_rank_test
from emlens.stats.spread import brown_forsythe, f_test
from emlens.stats.tables import compare_groups, comparison_table
from emlens.stats.trends import fall_null, steepest_fall

__all__ = [
    "ChangePoint",
    "EventOrder",
    "MatchedLoss",
    "NullDistribution",
    "StreamingMoments",
    "TestResult",
    "adjust_p_values",
    "bootstrap_mean",
    "brown_forsythe",
    "change_point",
    "clopper_pearson_interval",
    "cluster_bootstrap",
    "cohens_d",
    "cohens_d_interval",
    "compare_groups",
    "comparison_table",
    "correlation_null",
    "cosine_of_means",
    "f_test",
    "fall_null",
    "front_membership",
    "hierarchical_bootstrap",
    "logistic_midpoint",
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
    "rank_biserial",
    "rank_sum_test",
    "ratio_of_means",
    "signed_rank_test",
    "spearman",
    "steepest_fall",
    "t_interval",
    "tost",
    "welch_test",
    "wilson_interval",
]
