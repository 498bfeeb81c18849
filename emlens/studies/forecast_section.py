"""What the report shows of the study `priors`."""

from emlens.results.columns import Measure
from emlens.results.sections import Plot, Section
from emlens.results.tables import Table
from emlens.results.vocabulary import BESIDE, measures, word

FORECAST = "model parent held_out"
"""What names a forecast."""

SECTION = Section(
    method=(
        "Ridge regression from a parent’s prompt activations, taken before fine-tuning,"
        " to per-question alignment after it."
        " Layer, position and strength are chosen on inner folds;"
        " R² is pooled over outer folds against the training-fold mean."
        " Base questions with all their forms, or whole domains, are held out."
        " Beside it: TF-IDF of the rendered prompt, length, form, domain, mean input embedding,"
        " the parent’s own score, a model of another family, random features, and shuffled labels;"
        " p is Holm’s over all forecasts."
        " A forecast from the parent’s prior is shown where p is at most .05,"
        " no baseline is missing, and the gain over each has its whole interval above 0."
        " The other parent is shown beside: it holds the same prior."
        " With domains held out, TF-IDF and domain are near the mean by construction;"
        " shuffles then move whole domains, and questions within them."
    ),
    reference="Forecasts from activations before fine-tuning: arXiv 2606.20814.",
    plots=(
        Plot(
            kind="forecast_scores",
            table="forecast_baselines",
            tables=("forecast",),
            title="Activations against simpler predictors",
            caption=(
                "Out-of-fold R² with 95 % intervals; 0 is the training-fold mean."
                " Dotted: the 95th percentile with labels shuffled. The axis is cut at −1."
            ),
            name="scores",
        ),
        Plot(
            kind="forecast_scatter",
            table="forecast_predictions",
            tables=("forecast", "questions"),
            title="Forecast against measurement",
            caption=(
                "Each point is a question, coloured and shaped by domain; hover or tap shows it."
                " The dotted line is a perfect forecast."
            ),
            name="points",
            lead=True,
        ),
        Plot(
            kind="forecast_by_site",
            table="forecast_sites",
            title="Where forecasts work (exploratory)",
            caption=(
                "R² by layer and position; under it a p-value corrected over the whole grid"
                " by the permutation distribution of the maximum."
                " The best cell is never the headline."
            ),
            name="sites",
        ),
        Plot(
            kind="forest",
            table="score_statistics",
            x="model",
            y="mean",
            title="Mean score",
            caption="Over questions outside the domain; intervals resample domains.",
            colour="role",
            facet="questions_of",
            y_title="mean score (0–100)",
        ),
        Plot(
            kind="forest",
            table="score_relation",
            x="model",
            y="pearson",
            title="Do the same questions stay low?",
            caption=(
                "Correlation of scores before and after over questions; intervals over domains."
            ),
            colour="parent",
            null="null",
            y_title="Pearson correlation",
        ),
    ),
    tables={
        "score_statistics": Table(
            "One row per model and set of questions: mean and standard deviation over questions,"
            " intervals over domains.",
            ["model role questions_of", *measures("mean sd"), "n units"],
        ),
        "score_changes": Table(
            "One row per fine-tune, parent and test of after against before,"
            " base questions as units, with both corrections over all rows;"
            " an end of an interval that so few questions cannot reach is missing.",
            [
                "model parent test statistic",
                *measures("estimate effect"),
                "effect_name",
                *measures("shift_by_domain"),
                "n p p_bonferroni p_bh",
            ],
        ),
        "score_relation": Table(
            "One row per fine-tune and parent: correlation of scores before and after.",
            ["model parent", *measures("pearson spearman"), "null n"],
        ),
        "forecast": Table(
            "One row per fine-tune, parent and way of holding out.",
            [
                FORECAST,
                Measure(word("r2"), null="null_mean"),
                BESIDE,
                "p_holm",
                *measures("r2_fold_mean spearman"),
                "rmse",
                *measures("slope ceiling"),
                "n chosen_place estimator target_is shuffled",
            ],
        ),
        "forecast_baselines": Table(
            "One row per forecast and predictor: its R², and the gain of activations over it.",
            [FORECAST, "predictor", *measures("r2 gain")],
        ),
        "forecast_sites": Table(
            "One row per forecast, site and position, with corrected p-values; exploratory.",
            [FORECAST, "site position r2 p_max null_max_q95"],
        ),
        "forecast_predictions": Table(
            "One row per forecast and question: measured and forecast.",
            [FORECAST, "id group target predicted text"],
        ),
        "forecast_ceilings": Table(
            "One row per fine-tune: the R² that its seed's own noise leaves possible.",
            ["model", *measures("ceiling"), "seeds n method"],
        ),
    },
)
