"""Candidates from a fine-tune's judged answers: the direction of the literature (Soligo et al.,
arXiv 2506.11618) and its two variants, at every layer.

Answers that the fine-tune gave to the extraction questions are misaligned (aligned ≤ 30) or aligned
(> 70) where they are coherent (> 50); both classes are of one size. The stream is averaged over the
tokens of an answer.

* *Contrast of answers*: the fine-tune on misaligned minus the fine-tune on aligned answers.
* *Contrast of models*: the fine-tune minus its parent, both on the misaligned answers.
* *Contrast of both*: the fine-tune on misaligned minus the parent on aligned answers.

Two kinds of answers are two kinds of text. The parent's own difference between them, the *text
content*, is reported beside each. Refused: too few answers or base questions in a class, with the
counts. Cost: each model reads every answer of both classes once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from emlens.activations import CaptureSpec
from emlens.data import Answers, QuestionSet
from emlens.data.base_questions import base_questions
from emlens.directions import contrast, contrast_answers
from emlens.directions.answer_contrasts import Between
from emlens.directions.row_contrasts import Contrasts, Weighting
from emlens.directions.row_filters import ChosenRows, RowFilter
from emlens.foundation.errors import InputError
from emlens.foundation.estimate import Estimate
from emlens.foundation.sites import Site
from emlens.geometry import Direction, direction_cosine, split_half_cosine
from emlens.geometry.contrast_sums import ContrastSums
from emlens.geometry.contrasts import means_agree
from emlens.geometry.reliability import jackknife
from emlens.judging.score_source import JudgedAnswers
from emlens.models import HookedModel
from emlens.results.study_result import Part, columns_of
from emlens.studies.config import StudyConfig
from emlens.studies.extractions import Extraction, extraction_of, key_of
from emlens.studies.material import Material
from emlens.studies.streams import read_sites, read_streams
from emlens.studies.study import StudyContext

POSITION: Final = "mean_response"
CONTRASTS: Final[Mapping[Between, str]] = {
    "answers": "contrast of answers",
    "models": "contrast of models",
    "both": "contrast of both",
}
"""Kind of contrast → what its candidates are called."""
LEAST_QUESTIONS: Final = 2
"""Base questions in each class: fewer cannot be resampled."""


@dataclass(frozen=True, eq=False)
class AnswerCandidates(Extraction):
    """Contrasts of one fine-tune's answers.

    Args:
        answers: those of both classes. classes: which are which.
        own, text: the contrast of misaligned and aligned answers as the fine-tune reads them, and
            as its parent does.
        weighting: of means over answers: `token` or `example`.
    """

    name: str
    parent: HookedModel
    fine_tune: HookedModel
    config: StudyConfig
    answers: Answers
    classes: ChosenRows
    own: Contrasts
    text: Contrasts
    weighting: Weighting
    directions: Mapping[str, Direction]
    _streams: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rows(self, key: str) -> tuple[Tensor, Tensor]:
        site = str(self.directions[key].site)
        if site not in self._streams:
            captured = read_streams(
                {"before": self.parent, "after": self.fine_tune},
                self.answers.prompts(),
                self.config,
                sites=site,
                positions=POSITION,
            )
            self._streams[site] = captured["before"][site], captured["after"][site]
        return self._streams[site]

    def mean_before(self, key: str) -> Tensor:
        sums = self.text.sums(self.directions[key].site)
        weight = sums.positive_weight.sum() + sums.negative_weight.sum()
        return (sums.positive.sum(0) + sums.negative.sum(0)) / weight

    def split_half_cosine(self, key: str, seed: int) -> float:
        return split_half_cosine(self.sums(key), seed=seed).value

    def of_another(self, fine_tune: HookedModel, key: str) -> Direction | None:
        """The same contrast of the same answers, read by another fine-tune."""
        kind = _kind_of(key)
        misaligned = self.answers.select(self.classes.misaligned).prompts()
        aligned = self.answers.select(self.classes.aligned).prompts()
        negative = {
            "answers": (fine_tune, aligned),
            "models": (self.parent, misaligned),
            "both": (self.parent, aligned),
        }[kind]
        site = str(self.directions[key].site)
        contrasts = contrast(
            (fine_tune, misaligned),
            negative,
            CaptureSpec(sites=[site], positions=POSITION),
            weighting=self.weighting,
            seed=self.config.seed,
            progress=False,
        )
        sums = contrasts.sums(site)
        if means_agree(sums.positive_mean, sums.negative_mean):
            return None
        return contrasts.direction(site)

    def text_content(self, key: str) -> Tensor | None:
        return _difference(self.text.sums(self.directions[key].site))

    def sums(self, key: str) -> ContrastSums:
        """The block sums that a candidate is the difference of."""
        return _sums(_kind_of(key), self.own, self.text, self.directions[key].site)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per contrast and layer: length, reliability, and what of it is text."""
        rows = []
        for key, direction in self.directions.items():
            site = Site.parse(str(direction.site))
            sums, text = self.sums(key), self.text.sums(site)
            share = _text_estimate(_share_along, sums, text)
            if _kind_of(key) == "models":
                share = Estimate.undefined("both models read the same text", sums.blocks)
            rows.append(
                {
                    "model": self.name,
                    "site": str(site),
                    "position": POSITION,
                    "extraction": extraction_of(key),
                    "layer": site.layer,
                    "weighting": self.weighting,
                    "norm": direction.norm,
                    "relative_norm": direction.norm / float(self.mean_before(key).norm()),
                    "split_half_cosine": self.split_half_cosine(key, self.config.seed),
                    **columns_of("text_cosine", _text_estimate(direction_cosine, sums, text)),
                    **columns_of("text_share", share),
                    "answers_per_class": len(self.classes.misaligned),
                    "base_questions": self.base_questions,
                }
            )
        return pd.DataFrame(rows)

    @property
    def base_questions(self) -> int:
        """Base questions of both classes together: the units of every interval here."""
        return len(set(base_questions(answer.question for answer in self.answers)))


def candidates_of_focus(
    context: StudyContext,
    focus: Sequence[str],
    questions: QuestionSet,
    part: Part,
    **settings: Any,
) -> dict[str, AnswerCandidates]:
    """Contrasts of each fine-tune in focus that has enough answers, with their table; a warning for
    each that has not.

    Args:
        part: gets the table and the warnings. settings: as `answer_candidates`.
    """
    candidates: dict[str, AnswerCandidates] = {}
    reasons: dict[str, list[str]] = {}
    for name in focus:
        try:
            candidates[name] = answer_candidates(
                context.material, name, questions, context.config, **settings
            )
        except InputError as error:
            reasons.setdefault(str(error), []).append(name)
    for reason, names in reasons.items():
        part.warnings.append(f"{', '.join(names)}: no direction from answers: {reason}")
    tables = [each.table for each in candidates.values() if each.directions]
    if tables:
        part.tables["answer_contrasts"] = pd.concat(tables, ignore_index=True)
    return candidates


def answer_candidates(
    material: Material,
    name: str,
    questions: QuestionSet,
    config: StudyConfig,
    *,
    kinds: Sequence[Between],
    weighting: Weighting,
    least: int,
) -> AnswerCandidates:
    """Contrasts of a fine-tune's answers to the extraction questions at every layer.

    Args:
        kinds: among `CONTRASTS`. least: answers that each class must have.

    Raises:
        InputError: the source has no answers of it, or too few are left in a class; says how many.
    """
    reason = material.score_source.can("answers")
    if reason is not None:
        raise InputError(reason)
    parent, fine_tune = material.parent(name), material.family[name]
    asked = material.untrained(questions, name)
    judged = material.score_source.judged_answers(fine_tune, asked)
    row_filter = RowFilter(seed=config.seed)
    classes = _classes(row_filter, judged, least)
    sites = read_sites("resid_post", config, parent.n_layers)
    spec = CaptureSpec(sites=[str(site) for site in sites], positions=POSITION)
    own, text = (
        contrast_answers(
            model,
            judged.answers,
            judged.scores,
            spec,
            rows=row_filter,
            weighting=weighting,
            progress=False,
        )
        for model in (fine_tune, parent)
    )
    return AnswerCandidates(
        name,
        parent,
        fine_tune,
        config,
        judged.answers.select([*classes.misaligned, *classes.aligned]),
        classes,
        own,
        text,
        weighting,
        _directions(kinds, own, text, classes),
    )


def _classes(row_filter: RowFilter, judged: JudgedAnswers, least: int) -> ChosenRows:
    """The answers of both classes, balanced.

    Raises:
        InputError: fewer than `least` answers, or answers to fewer than 2 base questions, in one.
    """
    classes = row_filter.choose(judged.answers, judged.scores)
    counts = []
    is_enough = len(classes.misaligned) >= least
    for label, ids in (("misaligned", classes.misaligned), ("aligned", classes.aligned)):
        of_class = judged.answers.select(ids)
        units = len(set(base_questions(answer.question for answer in of_class)))
        is_enough = is_enough and units >= LEAST_QUESTIONS
        counts.append(f"{len(ids)} {label} answers to {units} base questions")
    if not is_enough:
        raise InputError(
            f"{' and '.join(counts)} are left of {len(judged.answers)} answers; at least {least}"
            f" answers to {LEAST_QUESTIONS} base questions are needed in each class (dropped:"
            f" {dict(classes.dropped)}); sample more answers or ask more questions"
        )
    return classes


def _directions(
    kinds: Sequence[Between], own: Contrasts, text: Contrasts, classes: ChosenRows
) -> dict[str, Direction]:
    """Key → direction, in the order of kinds and layers; where two means agree there is none: below
    the first block that an adapter touches, two models on the same text do not differ.
    """
    directions = {}
    for kind in kinds:
        ids = {"misaligned": classes.misaligned, "aligned": classes.aligned}
        if kind == "models":
            ids = {"misaligned": classes.misaligned, "same text": classes.misaligned}
        provenance: dict[str, Any] = {**own.provenance, "between": kind}
        if kind != "answers":
            provenance["reference"] = text.provenance["model"]
        for site in own.sites:
            sums = _sums(kind, own, text, site)
            if not means_agree(sums.positive_mean, sums.negative_mean):
                direction = sums.direction(site, POSITION, ids, provenance)
                directions[key_of(site, POSITION, CONTRASTS[kind])] = direction
    return directions


def _sums(kind: Between, own: Contrasts, text: Contrasts, site: str | Site) -> ContrastSums:
    """The sums of one kind, from those of both models on both classes, which lie in one set of
    blocks.
    """
    of_tuned, of_parent = own.sums(site), text.sums(site)
    if kind == "answers":
        return of_tuned
    negative = of_parent.negative_weight, of_parent.negative
    if kind == "models":
        negative = of_parent.positive_weight, of_parent.positive
    return ContrastSums(of_tuned.positive_weight, of_tuned.positive, *negative)


def _kind_of(key: str) -> Between:
    """The kind of contrast of a candidate."""
    return next(kind for kind, method in CONTRASTS.items() if method == extraction_of(key))


def _difference(sums: ContrastSums) -> Tensor | None:
    """None where both means agree."""
    if means_agree(sums.positive_mean, sums.negative_mean):
        return None
    return sums.difference


def _text_estimate(statistic: Any, direction: ContrastSums, text: ContrastSums) -> Estimate:
    """A number of a direction and its text content, with a jackknife interval over questions."""
    if _difference(text) is None:
        return Estimate.undefined("the parent reads both classes alike", direction.blocks)
    return jackknife(statistic, direction, text)


def _share_along(direction: Float[Tensor, " d"], text: Float[Tensor, " d"]) -> float:
    """d·t / d·d: how much of the direction's squared length is the text content."""
    return float(direction @ text) / float(direction @ direction)
