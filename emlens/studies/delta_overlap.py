"""Three questions about the shifts on training prompts and on unrelated prompts. Do they overlap,
which is a number beside its landmarks? More than any training on these prompts gives, which a
training null answers? And is something specific to harm shared across domains?

Both sides have the same number of prompts. The table `overlap` has the numbers at every layer and
position: uncentred and centred overlap, cosine of the mean shifts. Beside them stand landmarks,
which test nothing: random subspaces, one population with the covariance of the activations
*before*, the benign fine-tune's own overlap, neutral text, the split-half ceiling. The questions
are answered by `overlap_questions`. A place where nothing moved, or in one direction alone, is left
out with a warning. Cost: where the family has what a training null needs, as many training runs
as there are adapters for every recipe; option `adapters: 0` trains none.

Where k is a share of variance or the elbow, it is chosen at each place on the training shifts, and
every overlap and landmark there has that k: what is compared is of one dimension, and the
evaluation prompts have no say in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from pydantic import Field

from emlens.activations import Activations
from emlens.foundation.errors import InputError
from emlens.geometry.components import LEAST_VALUES
from emlens.geometry.shifts import chosen_dimension
from emlens.results.study_result import Part
from emlens.studies.config import Dimension, Options as PartOptions, largest_k
from emlens.studies.overlap_findings import add_findings
from emlens.studies.overlap_landmarks import landmark_bytes
from emlens.studies.overlap_measures import angle_rows, overlap_rows
from emlens.studies.overlap_nulls import OverlapNulls
from emlens.studies.overlap_questions import OverlapQuestions, third_readings
from emlens.studies.overlap_section import SECTION
from emlens.studies.overlap_shifts import (
    Place,
    SampledShifts,
    ShiftsAtPlace,
    noise_floor,
    noise_readings,
    sampled_shifts,
    shift_readings,
    untrained_reading,
    untrained_shifts,
)
from emlens.studies.overlap_tables import overlap_by_group, overlap_by_k, shifts_by_group
from emlens.studies.overlap_training import planned_nulls
from emlens.studies.prompt_shift_relation import prompts_at_place, relation_row
from emlens.studies.streams import Reading
from emlens.studies.study import PlannedTraining, Study, StudyContext

LARGEST_K_OF_GROUPS = 4
"""Groups have few prompts, and carry no more components."""
MOST_LANDMARK_DRAWS = 50
"""A landmark is drawn for its mean; nothing is tested against it."""
SHARE_OF_TRAINING = 0.7
"""Of the part's time, where nulls are trained."""


class Options(PartOptions):
    """What only this part reads."""

    adapters: int = Field(39, ge=0)
    """Adapters trained on permuted careful answers for each recipe and domain: the null of the
    overlap. 39 are the fewest with which it can be shown for two statistics at .05; 0 trains none.
    """
    landmark_draws: int = Field(5, ge=0)
    """Random and gradient updates drawn as landmarks for each fine-tune; 0 draws none."""
    keep_adapters: bool = False
    """Keep these adapters in the study's folder."""
    ray_actors: int = Field(0, ge=0)
    """Ray actors that train them; 0: this process."""
    ks: tuple[Dimension, ...] = ()
    """Further dimensions at which the overlap is measured, each beside its own landmark."""
    by_group: bool = True
    """Whether each group of questions, own domain and neutral text get an overlap of their own, at
    the first position.
    """
    mantel_draws: int = Field(199, ge=19)
    """Draws of the Mantel test: do prompts that lie alike shift alike?"""


@dataclass
class _Rows:
    """Rows of the part's tables, gathered over fine-tunes and places."""

    overlap: list[dict[str, object]] = field(default_factory=list)
    angles: list[dict[str, object]] = field(default_factory=list)
    prompts: list[pd.DataFrame] = field(default_factory=list)
    relations: list[dict[str, object]] = field(default_factory=list)
    groups: list[dict[str, object]] = field(default_factory=list)
    by_k: list[dict[str, object]] = field(default_factory=list)

    def tables(self) -> dict[str, pd.DataFrame]:
        """By name; those that only some studies have are left out where they have no row."""
        tables = {
            "overlap": pd.DataFrame(self.overlap),
            "angles": pd.DataFrame(self.angles),
            "shifts": pd.concat(self.prompts, ignore_index=True),
            "overlap_shift": pd.DataFrame(self.relations),
        }
        optional = {
            "overlap_groups": self.groups,
            "overlap_by_k": self.by_k,
        }
        for name, rows in optional.items():
            if rows:
                tables[name] = pd.DataFrame(rows)
        return tables


@dataclass(frozen=True)
class FineTuneShifts:
    """A fine-tune and its benign control: their shifts on both sides, and on every question.

    Args:
        shifts: on as many training as evaluation prompts.
        by_question: only where the overlap with each group of questions is measured.
    """

    name: str
    shifts: SampledShifts
    by_question: Activations | None = None
    benign: SampledShifts | None = None


class DeltaOverlap(Study):
    """What do shifts on training and on unrelated prompts share, and more than training gives?"""

    name = "delta_overlap"
    title = "What do shifts on training and on unrelated prompts share?"
    options = Options
    section = SECTION
    needs_outside = True
    runs_on_captures = True
    cost = 6

    def check(self, context: StudyContext) -> None:
        """Refuse a k that the data cannot carry.

        Raises:
            InputError: names the fine-tune, its number of prompts per side, and the largest k.
        """
        material, k = context.material, context.config.k
        for name in _with_training(context):
            n = min(len(material.training[name]), len(material.outside(name).prompts()))
            if k == "elbow" and n <= LEAST_VALUES:
                raise InputError(
                    f"k=elbow needs {LEAST_VALUES + 1} prompts per side, and {name!r} has {n};"
                    " pass a count, or more prompts"
                )
            largest = largest_k(n, material.family[name].d_model)
            if isinstance(k, int) and k > largest:
                raise InputError(
                    f"k={k} is above the rank that half of {n} prompts per side of {name!r} can"
                    f" carry; pass k <= {largest}, or more prompts"
                )

    def readings(self, context: StudyContext) -> Iterator[Reading]:
        material, config = context.material, context.config
        names = _with_training(context)
        for name in names:
            benign = material.benign_for(name)
            yield from shift_readings(material, name, config)
            if benign is not None and benign in material.training:
                yield from shift_readings(material, benign, config)
            if context.options.by_group:
                yield untrained_reading(material, name)
        yield from third_readings(context, names)
        if names:
            yield from noise_readings(material, names[0])

    def training(self, context: StudyContext) -> PlannedTraining | None:
        planned = planned_nulls(context, _with_training(context))
        if not context.options.landmark_draws:
            return planned
        planned = planned or PlannedTraining(0, 0, 0, 0)
        return replace(
            planned,
            uncounted="updates drawn as landmarks are not in the passes",
            memory=max(planned.memory, landmark_bytes(context, _with_training(context))),
        )

    def run(self, context: StudyContext) -> Part:
        names = _with_training(context)
        if not names:
            return Part(
                warnings=["no fine-tune in focus has training prompts: delta overlap was left out"]
            )
        questions = OverlapQuestions(context, names, context.progress, SHARE_OF_TRAINING)
        measurer = _OverlapMeasurer(context, names, questions)
        for name in names:
            measurer.measure(name)
        part = measurer.part
        if not measurer.rows.overlap:
            part.warnings.append("no place has shifts that can be compared: there is no overlap")
            return part
        part.tables |= measurer.rows.tables() | questions.tables()
        if context.material.captured:
            part.warnings.append(
                "the noise floor needs other batches of the same prompts, which captures do not"
                " hold: it is missing"
            )
        else:
            part.tables["noise_floor"] = noise_floor(context.material, names[0], context.config)
        add_findings(part, names, context.config.positions[0], questions.no_third)
        return part


def _with_training(context: StudyContext) -> list[str]:
    """The fine-tunes in focus whose training prompts are known."""
    material = context.material
    return [name for name in material.focus(context.config) if name in material.training]


class _OverlapMeasurer:
    """One run of the part over fine-tunes and places; landmarks and captures are shared.

    Args:
        questions: gathers what is answered; None where only places are measured.
    """

    def __init__(
        self, context: StudyContext, names: Sequence[str], questions: OverlapQuestions | None
    ) -> None:
        self.material, self.config, self.names = context.material, context.config, names
        self.options: Options = context.options
        self.progress = context.progress
        draws = min(self.config.draws, MOST_LANDMARK_DRAWS)
        self.nulls = OverlapNulls(draws, self.config.seed)
        self.part, self.rows = Part(), _Rows()
        self.questions = questions
        trains = questions is not None and questions.trains
        # of the progress: what is left of training
        self._share = 1 - SHARE_OF_TRAINING * trains

    def measure(self, name: str) -> None:
        """Every place of one fine-tune."""
        tuned = self._captured(name)
        self.part.warnings += size_warnings(tuned)
        train = tuned.shifts.train
        sites = train.sites
        share = self._share / (len(self.names) * len(sites) * len(self.config.positions))
        for site in sites:
            for position in self.config.positions:
                self._measure_place(tuned, Place(name, site, position))
                self.progress(share)
        if self.questions is not None:
            self.questions.add(name, tuned.shifts, tuned.benign)

    def _captured(self, name: str) -> FineTuneShifts:
        material, config = self.material, self.config
        shifts = sampled_shifts(material, name, config)
        by_question = None
        if self.options.by_group:
            by_question = untrained_shifts(material, name, config)
        benign = material.benign_for(name)
        if benign is None or benign not in material.training:
            return FineTuneShifts(name, shifts, by_question)
        return FineTuneShifts(name, shifts, by_question, sampled_shifts(material, benign, config))

    def _measure_place(self, tuned: FineTuneShifts, place: Place) -> None:
        """All rows of one fine-tune at one site and position."""
        shifts = tuned.shifts.at(place.site, place.position)
        if shifts.components < 2:
            self.part.warnings.append(_left_out(place, shifts.components))
            return
        k = self._dimension(self.config.k, shifts, place)
        if k is not None:
            self._compare_subspaces(tuned, place, shifts, k)
        self._relate_prompts(tuned, place, shifts)

    def _dimension(self, wanted: Dimension, shifts: ShiftsAtPlace, place: Place) -> int | None:
        """The k that is compared at a place, chosen on the training shifts; None, with a warning,
        where they have no elbow.
        """
        n, d_model = shifts.train.shape
        try:
            chosen = chosen_dimension(wanted, shifts.train, shifts.before_train)
        except InputError as error:
            self.part.warnings.append(f"{place}: {error}; no subspaces are compared there")
            return None
        k = min(chosen, shifts.components, largest_k(n, d_model))
        if k < chosen:
            self.part.warnings.append(_lowered_k(place, k, chosen))
        return k

    def _further_dimensions(self, shifts: ShiftsAtPlace, place: Place) -> list[int]:
        """Every k of the option `ks` at a place, each once."""
        ks: list[int] = []
        for wanted in self.options.ks:
            k = wanted if isinstance(wanted, int) else self._dimension(wanted, shifts, place)
            if k is not None and k not in ks:
                ks.append(k)
        return ks

    def _compare_subspaces(
        self, tuned: FineTuneShifts, place: Place, shifts: ShiftsAtPlace, k: int
    ) -> None:
        """Rows of every table about subspaces of dimension k at one place."""
        benign = self._benign_at(tuned, place, k)
        parent = self.material.parent(place.model).name
        key = (parent, *tuned.shifts.rendered, place.site, place.position)
        nulls = self.nulls.at(key, shifts.before)
        seed = self.config.seed
        self.rows.overlap += overlap_rows(place, shifts, benign, nulls, k)
        self.rows.angles += angle_rows(place, shifts, benign, k, seed)
        is_first = place.position == self.config.positions[0]
        if tuned.by_question is not None and is_first:
            domain = self.material.domain(place.model)
            groups = shifts_by_group(tuned.by_question, place, domain, shifts.neutral)
            k_of_groups = min(k, LARGEST_K_OF_GROUPS)
            self.rows.groups += overlap_by_group(
                place, shifts.train, groups, shifts.before, k_of_groups, seed
            )
        benign_pair = None if benign is None else benign.pair
        ks = self._further_dimensions(shifts, place)
        self.rows.by_k += overlap_by_k(place, shifts.pair, benign_pair, nulls, ks)

    def _benign_at(self, tuned: FineTuneShifts, place: Place, k: int) -> ShiftsAtPlace | None:
        """The benign control there; None, with a warning, where it cannot carry k components."""
        if tuned.benign is None:
            return None
        benign = tuned.benign.at(place.site, place.position)
        if benign.components >= k:
            return benign
        self.part.warnings.append(
            f"benign control of {place.model} at {place.site}, {place.position}:"
            f" its shifts have fewer than {k} components; it is missing there"
        )
        return None

    def _relate_prompts(self, tuned: FineTuneShifts, place: Place, shifts: ShiftsAtPlace) -> None:
        evaluation = tuned.shifts.evaluation
        prompts = prompts_at_place(
            place,
            shifts,
            evaluation.ids,
            evaluation.groups,
            self.material.texts,
            self.config.seed,
        )
        self.rows.prompts.append(prompts.rows(place))
        self.rows.relations.append(
            relation_row(place, prompts, self.options.mantel_draws, self.config.seed)
        )


def _left_out(place: Place, components: int) -> str:
    """The warning of a place where shifts have no component, or one."""
    if components == 0:
        return f"{place}: nothing moved there (the fine-tune acts later in the model); left out"
    return (
        f"{place}: shifts have one component, as all that an adapter of rank 1 writes has: what"
        " both sides share there is an identity; left out"
    )


def _lowered_k(place: Place, k: int, wanted: int) -> str:
    """The warning of a place whose shifts carry fewer components than the configuration asks."""
    return f"{place}: shifts carry {k} components; k is {k} there instead of {wanted}"


def size_warnings(tuned: FineTuneShifts) -> list[str]:
    """What is not compared at equal numbers of prompts."""
    name, shifts = tuned.name, tuned.shifts
    n = len(shifts.train)
    warnings = []
    if tuned.benign is not None and len(tuned.benign.train) != n:
        warnings.append(
            f"{name} is compared on {n} prompts per side,"
            f" its benign control on {len(tuned.benign.train)}: overlap depends on their number"
        )
    neutral = shifts.neutral
    if neutral is not None and len(neutral) < n:
        warnings.append(
            f"{name}: neutral text has {len(neutral)} prompts, the other sides {n};"
            " its overlap is not at equal numbers"
        )
    return warnings
