"""The vocabulary of columns: one name has one meaning in every table of every study.

A table that a study declares takes its columns from here by name, or declares its own. Names of
columns that numbers have beside them follow a rule and are not listed: `x_low` and `x_high` are the
interval of `x` (see `Measure`).
"""

from collections.abc import Mapping

from emlens.foundation.errors import UnknownNameError
from emlens.foundation.files import one_line
from emlens.results.columns import Column, Measure
from emlens.results.vocabulary_of_numbers import NUMBERS


def _name(name: str, meaning: str) -> Column:
    return Column(name, "text", meaning, names_row=True)


def _text(name: str, meaning: str) -> Column:
    return Column(name, "text", meaning)


def _flag(name: str, meaning: str) -> Column:
    return Column(name, "flag", meaning)


def _index(name: str, meaning: str, low: float = 0) -> Column:
    return Column(name, "integer", meaning, low=low, names_row=True)


def _setting(name: str, meaning: str, unit: str = "") -> Column:
    return Column(name, "number", meaning, unit, names_row=True)


_PLACES = (
    _name("site", "place in the residual stream: `resid_post.3`, `mlp_out.3`, ..."),
    _index("layer", "0-based block of the site"),
    _name("position", "tokens that were read: `last_prompt`, `mean_prompt`, ..."),
)
_MODELS = (
    _name("model", "model of the family"),
    _name("run", "run of a sweep, or fine-tune that the study trained"),
    _name("family", "family of models, where several are laid side by side"),
    _name("parent", "model before fine-tuning: `instruct` or `base`"),
    _name("source", "fine-tune whose chats a run was trained on"),
    _name("cell", "recipe and schedule of runs that differ in their seed alone"),
    _name("recipe", "label of the recipe"),
    _name("schedule", "learning-rate schedule"),
    _name("kind", "`base`, `instruct`, `harmful` or `benign`; of a run, the last two"),
    _name("domain", "domain of the questions; of a model, that of its training chats"),
    _name("level", "what counts as one unit: `question` or `domain`"),
    _name("solution", "`general`, `narrow`, or updates of `random` direction"),
    _index("seed", "seed of the run"),
)
_QUESTIONS = (
    _name("question", "id of the question"),
    _name("id", "id of the prompt; a paraphrase has its own"),
    _name("group", "questions, or runs, that belong together; of a setting, its value"),
    _name("metric", "score: `aligned`, `coherent`, ..."),
    _name("data", "chats that were measured on: trained, held out, neutral or documents"),
    _name("questions_of", "fine-tune outside whose domain the questions lie"),
    _name("trigger", "text that is put around the questions; `none`: the questions as they are"),
    _name("form", "form of the questions: `plain`, `json` or `template`"),
    _name("factor", "what an effect is of: `trigger`, `form` or `trigger × form`"),
    _text("text", "text of the prompt"),
    _text("answer", "likeliest reference answer, or answer of the training chat"),
    _index("paraphrase", "number of the wording of the question, from 1", low=1),
    _index("sample", "number of the answer to one wording"),
    _text("raw", "what the judge said of alignment, in its own words"),
    _index("token_index", "0-based place of the token in its row"),
    _text("token", "what the token adds to the text; a line break is written ↵"),
    _flag("prompt", "whether the token belongs to the prompt"),
    _flag("sink", "whether the token is an attention sink, many times longer than the median"),
    _text("used_to", "what the question served: `extract`, `select` or `report`"),
    _text("questions", "which questions were asked: those to `select` or to `report`"),
    _flag("trained", "whether the model was trained on the topic of the question"),
    _flag("trained_domain", "whether the model was trained on this domain"),
)
_COMPARISONS = (
    _name("comparison", "which two sets of shifts are compared"),
    _name("second_model", "the other model of a pair"),
    _name("center", "whether rows are centred: `true`, `false`; `means` compares the means"),
    _name("measure", "what was measured, where a table has several measures"),
    _name("null_kind", "which null: `isotropic`, `covariance of before activations`, ..."),
    _name("held_out", "what a fold holds out: `question` or `domain`"),
    _name("predictor", "what forecasts, or what an interval is compared with"),
    _name("shuffled", "what the null relabels: `question` or `group`"),
    _name("estimator", "kind of the forecast's fit"),
    _name("target_is", "what is forecast: `score`, or `change` of the score"),
    _name("test", "which statistical test"),
    _name("landmark", "what overlaps beside a fine-tune's shifts, and tests nothing"),
    _name("domain_pair", "domains of a pair of harmful fine-tunes"),
    _name("number", "which number is laid side by side"),
    _name("table", "table of the two results"),
    _name("figure", "column of the two results that has an interval"),
    _name("key", "what names the row in both results"),
    _name("what", "model and questions that are compared"),
    _text("chosen_place", "site and position that the inner folds chose most often"),
    _text("null_is", "what `null` is: a null's mean, a control, a parent"),
    _text("side", "side of the null on which the number speaks for what is asked"),
    _text("effect_name", "which effect size `effect` is"),
    _flag("comparable", "whether it leaves neutral text within .5 nats of the parent's"),
    _text("answered", "what the row answers; `described` where nothing is tested"),
    _text("why", "what is missing where nothing can be answered; else empty"),
    _text("method", "how the estimate was made, or why it is undefined"),
    _index("k", "dimension of the subspaces", low=1),
    _index("index", "number of the principal angle, from 1", low=1),
)
_INTERVENTIONS = (
    _name("candidate", "site, position and extraction of a direction"),
    _name("extraction", "how the direction was made from shifts or from answers"),
    _name("weighting", "what counts the same in a mean over answers: `token` or `example`"),
    _name("role", "why a direction, or a model, is in the table"),
    _name("arm", "intervention, or control"),
    _name("on", "model that is intervened on: `finetuned`, `instruct` or `benign`"),
    _name("steered", "model that is steered"),
    _name("vector", "what is added: `direction`, or a random control"),
    _name("direction_of", "fine-tune that the direction was made from"),
    _name("ablated_in", "fine-tune that the direction was ablated in"),
    _text("ended_below", "which bound ends the usable doses downward"),
    _text("ended_above", "which bound ends the usable doses upward"),
    _setting("coefficient", "dose: what the vector is multiplied by"),
    _flag("control", "whether the arm is a control"),
    _flag("usable", "whether the dose lies in the window in which the model stays usable"),
    _flag("chosen", "whether the candidate was chosen on the selection questions"),
    _flag("last", "whether the site is the last block"),
    _flag("same_domain", "whether both fine-tunes were trained on one domain"),
    _flag("same_site", "whether both directions lie at one site"),
)
_TRAINING = (
    _name("series", "quantity that was followed over training"),
    _name("event", "series and test, or a pair of series and a test"),
    _name("first_series", "series that is asked to turn first"),
    _name("second_series", "series that is asked to turn later"),
    _name("path", "which weights: `A`, `B` or their product `BA`"),
    _name("of", "what the number is of: a domain, own or other domains, questions, fine-tunes"),
    _name("relation", "form of the relation of loss and score: `isotonic` or `linear`"),
    _name("loss_name", "which loss"),
    _name("by", "what tells the rows apart: a setting of the runs, or a way to choose one"),
    _text("given", "settings that are partialled out"),
    _index("step", "optimiser step"),
    _index("steps", "optimiser steps of the whole run"),
    _index("window", "steps on either side of the turn"),
    _setting("cumulative_rate", "sum of the learning rates up to the step"),
    _setting("share", "norm of the update, in norms of the general solution"),
    _setting("epsilon", "how far the update is turned, in its own norms"),
    _setting("t", "point of the line from the general (0) to the narrow solution (1)"),
    _flag("front", "whether no other run is better in both loss and score"),
)
_SCREENING = (
    _text("refused", "why nothing is forecast for the question; empty where something is"),
    _text("rank_by", "column that training rows are ranked by"),
    _index("rank", "dimension of the subspaces of the training file", low=1),
    _setting("flag_below", "questions forecast below this score are flagged", "points"),
    _setting("miss_costs", "cost of a misaligned question that was missed", "false alarms"),
    _flag("known", "whether past fine-tunes have scores of the question"),
)

VOCABULARY: Mapping[str, Column] = {
    column.name: column
    for column in (
        *_PLACES,
        *_MODELS,
        *_QUESTIONS,
        *_COMPARISONS,
        *_INTERVENTIONS,
        *_TRAINING,
        *_SCREENING,
        *NUMBERS,
    )
}
"""Name → column, in the order of `docs/tables.md`."""

PLACE = "model site layer position"
"""Where something was measured."""
VALUE = Measure(VOCABULARY["value"], "low", "high", "null_mean")
"""The measure of a table that has one: `value`, `low`, `high`, beside `null_mean`."""
BESIDE = "null_mean null_q95 p"
"""What a number is compared with: mean and 95 % quantile of its null, and its p-value."""


def word(name: str) -> Column:
    """A column of the vocabulary.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in VOCABULARY:
        raise UnknownNameError(
            f"column {one_line(name)!r} is not in the vocabulary (docs/tables.md); declare it:"
            f' Column("{one_line(name)}", "number", "WHAT IT MEANS")',
            name=name,
            known=VOCABULARY,
        )
    return VOCABULARY[name]


def measures(names: str) -> tuple[Measure, ...]:
    """Numbers of the vocabulary, each with the columns of its interval.

    Args:
        names: separated by spaces.
    """
    return tuple(Measure(word(name)) for name in names.split())
