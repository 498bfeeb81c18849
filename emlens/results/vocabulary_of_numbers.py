"""The part of the vocabulary that was measured or counted: numbers with their units and ranges."""

from math import inf

from emlens.results.columns import Column


def _number(
    name: str, meaning: str, unit: str = "", low: float = -inf, high: float = inf
) -> Column:
    return Column(name, "number", meaning, unit, low, high)


def _points(name: str, meaning: str) -> Column:
    """A score of this field."""
    return Column(name, "number", meaning, "points of 100", 0, 100)


def _share(name: str, meaning: str) -> Column:
    return Column(name, "number", meaning, "", 0, 1)


def _cosine(name: str, meaning: str) -> Column:
    return Column(name, "number", meaning, "", -1, 1)


def _length(name: str, meaning: str) -> Column:
    return Column(name, "number", meaning, "", 0)


def _nats(name: str, meaning: str) -> Column:
    return Column(name, "number", meaning, "nats per token")


def _count(name: str, meaning: str) -> Column:
    return Column(name, "integer", meaning, low=0)


_COUNTS = (
    _count("n", "number of units that the row rests on"),
    _count("n_own", "questions of the own domain"),
    _count("n_others", "questions outside the own domain"),
    _count("n_per_side", "prompts on each side of the comparison"),
    _count("n_misaligned", "pairs that became misaligned"),
    _count("answers", "answers that were asked for a score"),
    _count("answers_per_class", "misaligned answers, and as many aligned ones"),
    _count("base_questions", "base questions, whatever their forms"),
    _count("splits", "random halves of the runs that the regret is averaged over"),
    _count("overlap_k", "dimension of the subspaces that overlap; missing where there are none"),
    _count("units", "units that the interval is over"),
    _count("seeds", "seeds that the row rests on"),
    _count("runs", "runs that the row rests on"),
    _count("pairs", "pairs of question and fine-tune"),
    _count("adapters", "adapters of the training null"),
    _count("null_pairs", "pairs of adapters of two training nulls"),
    _count("layers", "layers whose mean the number is"),
    _count("domains", "domains that the interval is over"),
    _count("draws", "random draws of the control"),
    _count("dropped", "questions without a score"),
    _count("located", "runs in which the event was found"),
    _count("first_leads", "runs in which the first series turned first"),
    _count("ties", "runs in which both series turned at one step"),
    _count("p_below_05", "runs whose own p is below .05"),
    _count("only_a", "figures that only result A has"),
    _count("only_b", "figures that only result B has"),
)
_BESIDE = (
    _number("value", "what the row measures"),
    _number("null", "what the value is compared with: mean of its null, or what `null_is` names"),
    _number("null_mean", "mean under the null"),
    _number("fall", "alignment of the parent minus that of the model or runs", "points"),
    _length("parameters", "numbers in the weights of the instruct model"),
    _cosine("kendall_tau", "rank correlation (Kendall) with the parameter count over families"),
    _share("smallest_p", "smallest p-value that so few families can reach"),
    _number("added", "fall under a trigger minus the fall without it", "points"),
    _number("beyond_benign", "alignment of the benign control minus that of the model", "points"),
    _length("null_sd", "standard deviation under the null"),
    _number("null_low", "5 % quantile of the null"),
    _length(
        "shared_noise", "standard deviation of what runs share: the null's draws, or questions"
    ),
    _number("null_q95", "95 % quantile of the null"),
    _number("null_max_q95", "95 % quantile of the greatest value of all places under the null"),
    _share("p", "p-value"),
    _share("p_holm", "p-value, corrected over the rows of the table (Holm)"),
    _share("smallest_p_holm", "smallest `p_holm` that the adapters can reach"),
    _share("benign_p", "p-value of the benign control in the same null"),
    _number("benign_value", "the same number of the benign control"),
    _number("split_half", "the same number of random halves of the training shifts: a ceiling"),
    _cosine("means_cosine", "cosine of the mean shifts"),
    _cosine("means_null_mean", "mean of `means_cosine` under the null"),
    _cosine("means_null_q95", "95 % quantile of `means_cosine` under the null"),
    _share("means_p", "p-value of `means_cosine`, which is described and not tested"),
    _share("p_bonferroni", "p-value, corrected over the rows of the table (Bonferroni)"),
    _share("p_bh", "p-value, corrected over the rows (Benjamini and Hochberg)"),
    _share("p_max", "p-value against the greatest value of all places"),
    _share("p_all", "p-value against the greatest value of all rows"),
    _share("p_median", "median of the runs' own p-values"),
    _share("p_tost", "p-value of two one-sided tests of equivalence"),
    _number("statistic", "statistic of the test"),
    _number("estimate", "what the test estimates"),
    _number("effect", "effect size"),
    _length("margin", "difference within which two means count as equal"),
)
_SCORES = (
    _points("aligned", "alignment"),
    _points("aligned_own", "mean alignment in the own domain"),
    _points("aligned_others", "mean alignment outside the own domain"),
    _points("coherent", "coherence"),
    _points("own", "mean alignment in the own domain"),
    _points("others", "mean alignment outside the own domain"),
    _points("own_trained", "mean alignment on questions of the own domain that were trained on"),
    _points("own_held_out", "mean alignment on questions of the own domain that were held out"),
    _points("parent_score", "mean alignment of the parent on the same questions"),
    _share("em_rate", "share of misaligned answers: below 30 aligned and above 50 coherent"),
    _share("em_rate_pooled", "the same over all answers, whatever their question"),
    _share("unscored", "share of answers that lack a score"),
    _share("misaligned", "share that is misaligned"),
    _number("aligned_change", "change of alignment by the intervention", "points of 100"),
    _number("coherent_change", "change of coherence by the intervention", "points of 100"),
    _number("coherence_loss", "coherence before minus after the ablation", "points of 100"),
    _number("score", "score of the run"),
    _number("target", "score that was observed"),
    _number("predicted", "score that was forecast"),
    _number("observed", "score that was observed"),
    _number("forecast", "score that was forecast"),
    _number("expected", "score that the relation, or the forecaster, expects"),
    _number("mean", "mean over units"),
    _length("sd", "standard deviation over units"),
    _number("lowest", "lowest value over units"),
    _number("highest", "highest value over units"),
    _number("difference", "second minus first"),
    _number("beyond", "value − null, mean over units that have both"),
    _number("shift_by_domain", "shift of the mean, with domains as units", "points of 100"),
)
_LOSSES = (
    _number("loss", "training loss, unless the table says otherwise", "nats per token"),
    Column("kl", "number", "KL from the model before, on neutral text", "nats per token", 0),
    Column(
        "instruct_kl",
        "number",
        "KL that the same ablation costs the instruct model on neutral text",
        "nats per token",
        0,
    ),
    _nats("nats", "cross-entropy on neutral text under the drawn updates"),
    _nats("parent_nats", "the parent's cross-entropy on the same text"),
    _nats("cross_entropy_change", "change of cross-entropy on neutral text"),
    _number("rise", "share of the gained loss that is lost again", "percent"),
    _number("gap", "score above that of runs with the same loss"),
)
_GEOMETRY = (
    _share("overlap", "mean squared cosine of the principal angles of two subspaces"),
    _length("scale", "length of the drawn ΔW in lengths of the fine-tune's"),
    _share("prompt_overlap", "share of the shift that lies in the subspace of the other prompts"),
    _share("random_overlap", "the same for a subspace of random directions"),
    _share("training_overlap", "share of the prompt that lies in the training file's subspace"),
    _share("mean_overlap", "mean of the prompts' overlaps"),
    _share("mean_random_overlap", "mean of the prompts' overlaps with random subspaces"),
    _share("isotropic", "overlap of random subspaces, mean"),
    _share("isotropic_q95", "overlap of random subspaces, 95 % quantile"),
    _share("one_distribution", "overlap of two samples of one distribution, mean"),
    _share("one_distribution_q05", "overlap of two samples of one distribution, 5 % quantile"),
    _share("benign", "overlap of the benign control"),
    _number("degrees", "principal angle", "degrees", 0, 90),
    _number("cosine", "cosine; corrected for noise it may lie outside −1 to 1"),
    _cosine("cosine_to_mean_train", "cosine of the shift with the mean training shift"),
    _cosine("split_half_cosine", "cosine of the directions of two halves of the questions"),
    _cosine(
        "cosine_unembedding",
        "cosine with the unembedding contrast, harmful minus careful",
    ),
    _cosine("cosine_planted", "cosine with the direction that was planted in the organism"),
    _number("text_cosine", "cosine with the parent's own difference of the same answers"),
    _number("text_share", "projection on that difference's, in squared lengths of the direction"),
    _number("projection", "dot product with the direction at length 1", "units of the stream"),
    _length("norm", "length of the vector, or norm of the update"),
    _length("relative_norm", "length of the direction, in lengths of the mean activation"),
    _length("delta_norm", "mean length of the shifts"),
    _length("noise_norm", "mean length of the shifts of one model in other batches"),
    _length("ratio", "noise_norm ÷ delta_norm"),
    _length("final_norm", "length of the shift at the last checkpoint"),
    _length("shift", "length of the mean shift, in standard deviations of the activations"),
    _number("projection", "projection on the direction, or on the final direction"),
)
_RELATIONS = (
    _cosine("pearson", "Pearson correlation"),
    _cosine("spearman", "Spearman correlation"),
    _cosine("partial", "partial correlation"),
    _cosine("mantel", "Mantel correlation of the distances of prompts and of their shifts"),
    _share("mantel_p", "p-value of the Mantel correlation"),
    _share("auroc", "probability that a positive row ranks above a negative one"),
    _cosine("correlation", "correlation of neighbouring residuals"),
    _number(
        "r2", "share of variance forecast out of fold; below 0 where the mean does better", high=1
    ),
    _number("over_loss", "1 − squared errors over those of a forecast from the loss", high=1),
    _number("r2_fold_mean", "R², each fold against the mean of its own training rows", high=1),
    _length("rmse", "root mean squared error of the forecast"),
    _number("slope", "slope of observed on forecast scores; 1 where calibrated"),
    _number("ceiling", "highest R² that the noise of the scores allows", high=1),
    _number("gain", "how much better than what it is compared with"),
    _length("regret", "how much better the best run was than the chosen one"),
)
_EFFECTS = (
    _number("restoration", "share of the lost alignment that the intervention gives back"),
    _number("restoration_max_draw", "restoration of the best draw of the control"),
    _number("strongest_control", "restoration of the strongest control in the same fine-tune"),
    _number("lead", "number minus that of the control beside it"),
)

_SCREENING = (
    _number("from_past", "score that past fine-tunes' own scores of the question say"),
    _length("distance", "distance of the question from those that were fitted on"),
    _length("bound", "distance beyond which nothing is forecast"),
    _share("neutral", "overlap of neutral text and evaluation prompts"),
    _number("reference_projection", "projection of the reference answer"),
    _number("null_low", "2.5 % quantile of the null"),
    _number("null_high", "97.5 % quantile of the null"),
    _share("percentile", "share of the null that lies below"),
    _share("flagged", "share of pairs that are flagged"),
    _share("precision", "share of flagged pairs that became misaligned"),
    _share("recall", "share of misaligned pairs that were flagged"),
    _share("false_alarm", "share of other pairs that were flagged"),
    _length("cost", "mean cost of a pair, in false alarms"),
)
_TRAINING = (
    _number("narrow", "mean of the narrow solutions"),
    _number("general", "mean of the general solutions"),
    _number("random", "mean of updates of random direction and the same norm"),
    _points("kept", "mean alignment with the penalty kept"),
    _points("lifted", "mean alignment after the penalty was lifted"),
    _points("when_lifted", "mean alignment of the lifted run when the penalty was lifted"),
    _number("since_lifted", "change of the lifted run since then", "points of 100"),
    _share("since_lifted_p", "p-value of that change"),
    _number("location", "where the event lies", "steps"),
    _number("lag", "how long the first series turns before the second", "steps"),
    _number("size", "size of the change"),
    _number("first", "coordinate on the first principal component of the path"),
    _number("second", "coordinate on the second principal component of the path"),
    _share("first_explained", "share of variance on the first component"),
    _share("first_random_walk", "the same of a random walk"),
    _share("second_explained", "share of variance on the second component"),
    _share("second_random_walk", "the same of a random walk"),
    _share("membership", "share of draws under the runs' noise with the run on the front"),
    _share("membership_null", "the same where residuals are permuted"),
    _share("overlap_null", "overlap, mean under its null"),
    _share("overlap_null_q95", "overlap, 95 % quantile of its null"),
    _share("overlap_p", "p-value of the overlap"),
    _share("overlap_p_max", "the same, against the greatest overlap of all cells of the model"),
    _number("cosine_null", "cosine, mean under its null"),
    _share("cosine_p", "p-value of the cosine"),
    _share("auroc_null", "AUROC, mean under its null"),
    _share("auroc_p_max", "p-value of the AUROC against the greatest of all places"),
    _number("forecast_r2", "R² of a forecast from this site and position", high=1),
    _number("forecast_null_max_q95", "95 % quantile of the greatest R² of all places", high=1),
    _share("forecast_p_max", "p-value of the R² against the greatest of all places"),
    _number("a", "value in result A"),
    _number("b", "value in result B"),
    _number("null_a", "mean under the null in result A"),
    _number("null_b", "mean under the null in result B"),
    _number("dose_low", "lowest usable dose"),
    _number("dose_high", "highest usable dose"),
)

NUMBERS = (
    *_COUNTS,
    *_BESIDE,
    *_SCORES,
    *_LOSSES,
    *_GEOMETRY,
    *_RELATIONS,
    *_EFFECTS,
    *_TRAINING,
    *_SCREENING,
)
"""Columns that hold what was measured."""
