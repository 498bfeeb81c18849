"""The tables of a screening and of its backtest, with their columns."""

from collections.abc import Mapping
from typing import Final

from emlens.results.columns import Measure
from emlens.results.tables import Table
from emlens.results.vocabulary import measures, word

SCREENING_TABLES: Final[Mapping[str, Table]] = {
    "forecast": Table(
        "One row per question: its forecast score, lowest first, with intervals.",
        [
            "id group expected text",
            Measure(word("predicted"), "low", "high"),
            "known",
            Measure(word("from_past"), "past_low", "past_high"),
            "distance bound refused",
        ],
    ),
    "overlap": Table(
        "One row per site: overlap of training and evaluation prompts before training.",
        ["site k n overlap isotropic isotropic_q95 one_distribution", "one_distribution_q05"],
        optional=["neutral null null_q95 p"],
    ),
    "question_overlap": Table(
        "One row per question: its share inside the subspace of the training prompts.",
        ["id group site rank training_overlap null"],
    ),
    "training_rows": Table(
        "One row per training chat, by its projection on the direction.",
        [
            "id text answer projection reference_projection difference rank_by",
            "null_low null_high percentile",
        ],
    ),
    "backtest_ranking": Table(
        "One row per predictor: how well it ranks pairs that became misaligned.",
        ["predictor", Measure(word("auroc"), null="null"), "null pairs n_misaligned"],
    ),
    "backtest_thresholds": Table(
        "One row per predictor and threshold: what flagging below it finds.",
        ["predictor flag_below flagged null", *measures("precision recall false_alarm")],
    ),
    "backtest_calibration": Table(
        "One row per predictor and bin of forecasts: what was observed.",
        ["predictor predicted", *measures("observed"), "pairs"],
    ),
    "backtest_cost": Table(
        "One row per predictor, cost of a miss and threshold: mean cost of a pair.",
        ["predictor miss_costs flag_below", Measure(word("cost"), null="null"), "null"],
    ),
    "backtest_base_rates": Table(
        "One row for all pairs, for all past fine-tunes, and per past fine-tune: share that became"
        " misaligned.",
        ["of model", *measures("misaligned"), "n"],
    ),
}
