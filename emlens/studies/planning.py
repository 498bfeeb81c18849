"""What a study will cost, before anything of it runs: passes, tokens, answers, requests, bytes on
disk, time and memory of every part.

The models are loaded, and a few batches of the study's own prompts are timed. Counts of passes and
tokens are exact: the parts are asked what they read, or run on models that compute nothing
(`rehearsal`). They hold as long as no batch has to be cut for want of memory. A part that goes on
only where it finds something is rehearsed twice, with scores that have something to find and with
scores that have nothing. How long sampled answers will be is not known before, so their tokens are
an upper limit.
Parts that train models are not planned, and the plan says so; what a part trains beside
its passes, as a training null does, is in the time.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emlens.activations import CaptureSpec, estimate_capture
from emlens.activations.kept_captures import keeping_captures
from emlens.data import QuestionSet
from emlens.foundation.errors import InputError
from emlens.foundation.free_memory import return_free_memory
from emlens.foundation.provenance import peak_memory
from emlens.judging.score_source import Cost, Planned
from emlens.models import HookedModel
from emlens.models.pass_counts import PassCounts, counted_passes
from emlens.models.pass_memory import text_chunks
from emlens.studies.config import StudyConfig, read_config
from emlens.studies.material import Material
from emlens.studies.material_loading import load_material
from emlens.studies.planned_captures import PlannedCaptures
from emlens.studies.registry import get_study
from emlens.studies.rehearsal import WIDTH, RehearsedScores, rehearsed, rehearsed_check
from emlens.studies.room import Room, free_room, held_memory
from emlens.studies.running import CHECKS, check_names, contexts_of, reads_scores
from emlens.studies.sampling_time import SamplingTime
from emlens.studies.streams import Reading, read_layers, read_sites, read_streams
from emlens.studies.study import Study, StudyContext
from emlens.studies.study_plan import Least, PartPlan, StudyPlan

_ROWS_TIMED = 12
"""Questions whose pass with logits is timed, or as many of them as fit into memory."""
_ANSWER_BYTES, _VERDICT_BYTES, _TABLE_BYTES = 600, 700, 20_000_000
"""On disk: one answer beside its text, one verdict, and the tables with the report."""
_TOKEN_BYTES = 5
_NO_TIME = (0.0, 0.0, 0.0)


def plan_study(
    config: str | Path | Mapping[str, Any] | StudyConfig,
    out: str | Path = "runs/study",
    *,
    timed: bool = True,
) -> StudyPlan:
    """Plan the study of one family. Nothing is written.

    Args:
        out: where the study would be written; answers that are on file there are not counted again.
        timed: time a few batches, and the statistics of a few layers; without, the plan has no
            times.

    Raises:
        InputError: a configuration that cannot be used, or a study that cannot fit.
        LoadError: a model that cannot be loaded.
    """
    checked = read_config(config)
    check_names(checked)
    return plan_material(checked, load_material(checked, out), out, timed=timed, statistics=timed)


def plan_material(
    checked: StudyConfig,
    material: Material,
    out: str | Path,
    *,
    timed: bool = False,
    statistics: bool = False,
    weights: int | None = None,
    room: Room | None = None,
) -> StudyPlan:
    """`plan_study` of material that is there; models without weights can be planned, not timed.

    Args:
        timed: time a few batches. statistics: time the statistics of a few layers.
        weights: bytes of models that are not loaded; None: what this process holds counts.
        room: of the machine that will run the study; None: this one.

    Raises:
        InputError: no models, or a study that cannot fit.
    """
    if not material.has_models or material.captured:
        raise InputError(
            "a plan says what models will cost, and none is given; run the study itself"
        )
    real_contexts, reasons = contexts_of(checked, material, Path(out))
    rates = _Rates(_NO_TIME, _NO_TIME, SamplingTime())
    if timed:
        rates = _Rates.measured(material, checked)
    return_free_memory()
    held, loaded = held_memory(), peak_memory() or 0
    if weights is not None:
        held = loaded = weights
    k = _k_of_rehearsal(checked)
    width = max(WIDTH, 2 * k)
    rehearsal, nothing = rehearsed(material, width), rehearsed(material, width, finds=False)
    config_of_rehearsal = checked.model_copy(
        update={"draws": 20, "permutations": 20, "repeats": 1, "k": k}
    )
    captures = PlannedCaptures.of(material.family.instruct)
    parts = []
    with counted_passes() as counts:
        if reads_scores(real_contexts):
            rehearsed_check(rehearsal)
    if counts.passes:
        parts.append(_part_plan(CHECKS, counts, Cost(), rates, loaded, material, 0, 0.0))
    for name, real in real_contexts.items():
        context = replace(real, material=rehearsal, config=config_of_rehearsal)
        part = _plan_part(name, context, nothing, rates, loaded, material, captures)
        if statistics and get_study(name).runs_on_captures:
            part = part.with_statistics(_statistics(get_study(name), real, material))
        training = get_study(name).training(real)
        if training is not None:
            part = part.with_training(training, rates.logits, held)
        parts.append(part)
    if room is None:
        room = free_room(Path(out), material.family.instruct.device)
    plan = StudyPlan(tuple(parts), reasons, room)
    plan.check(checked.scores.budget.requests)
    return plan


def _plan_part(
    name: str,
    context: StudyContext,
    nothing: Material,
    rates: "_Rates",
    loaded: int,
    material: Material,
    captures: PlannedCaptures,
) -> PartPlan:
    """What one part costs, rehearsed.

    Args:
        context: with the rehearsed material. material: the real one.
        nothing: rehearsed material whose scores have nothing to find.
        loaded: bytes in memory before any part, weights included.
        captures: those of the parts before it; gets those of this one.
    """
    study = get_study(name)
    if not study.runs_on_captures and not study.can_be_rehearsed:
        return PartPlan(name, None, note="it trains or loads models, which no plan foresees")
    source = _rehearsed_source(context.material)
    planned_before, n_before = set(source.planned), len(source.costs)
    captured_before = captures.so_far()
    stream_bytes, began = 0, time.monotonic()
    with counted_passes() as counts, keeping_captures(captures):
        if study.runs_on_captures and not study.can_be_rehearsed:
            stream_bytes = _read_all(study, context, material)
        else:
            study.run(context)
    cost = sum(source.costs[n_before:], Cost())
    stored = captures.stored - captured_before.stored
    if study.runs_on_captures:
        plan = _part_plan(name, counts, cost, rates, loaded, material, stream_bytes, 0.0)
        return replace(plan, captures=stored)
    statistics = 0.0
    if rates.stream != _NO_TIME:
        # a rehearsed part ran its own statistics, on a narrow stream
        statistics = time.monotonic() - began
    part = _part_plan(name, counts, cost, rates, loaded, material, stream_bytes, statistics)
    part = replace(part, captures=stored)
    least = _least(study, replace(context, material=nothing), planned_before, captured_before)
    return part if least == Least(counts, cost) else replace(part, least=least)


def _least(
    study: Study, context: StudyContext, planned: Planned, captures: PlannedCaptures
) -> Least:
    """What a part costs where it finds nothing.

    Args:
        planned, captures: answers and captures of the parts before it.
    """
    source = _rehearsed_source(context.material)
    source.planned.clear()
    source.planned.update(planned)
    n_before = len(source.costs)
    with counted_passes() as counts, keeping_captures(captures):
        study.run(context)
    return Least(counts, sum(source.costs[n_before:], Cost()))


def _rehearsed_source(material: Material) -> RehearsedScores:
    source = material.score_source
    assert isinstance(source, RehearsedScores)
    return source


def _k_of_rehearsal(config: StudyConfig) -> int:
    """The dimension that is planned; streams that are made up have no elbow."""
    if isinstance(config.k, int):
        return config.k
    return int(StudyConfig.model_fields["k"].default)


def _statistics(study: Study, real: StudyContext, material: Material) -> float:
    """Seconds of a part beside its passes.

    The part is rehearsed at one layer and at two, with streams of the real width and all draws.
    Every further layer is taken to cost what the second did.
    """
    layers = read_layers(real.config, material.family.instruct.n_layers)
    rehearsal = rehearsed(material, material.family.instruct.d_model)
    seconds: list[float] = []
    for number in range(1, min(len(layers), 2) + 1):
        changes = {"layers": tuple(layers[:number]), "k": _k_of_rehearsal(real.config)}
        config = real.config.model_copy(update=changes)
        context = replace(real, material=rehearsal, config=config)
        for model, asked_as in study.scored(context):
            rehearsal.scores(model, asked_as)  # kept, so that it is not timed
        began = time.monotonic()
        with keeping_captures():
            study.run(context)
        seconds.append(time.monotonic() - began)
        if not list(study.readings(context)):
            return seconds[0]  # it reads no stream, so no layer costs anything
    return seconds[-1] + max(0.0, seconds[-1] - seconds[0]) * (len(layers) - len(seconds))


def _read_all(study: Study, context: StudyContext, material: Material) -> int:
    """Ask for the scores and streams that a part reads.

    Returns:
        The bytes that the real streams of its largest reading take.
    """
    for model, asked_as in study.scored(context):
        context.material.scores(model, asked_as)
    family, largest = context.family, 0
    for reading in study.readings(context):
        models = {name: family[name] for name in reading.models}
        read_streams(
            models,
            reading.prompts,
            context.config,
            sites=reading.sites,
            positions=reading.positions or None,
            batch_tokens=reading.batch_tokens,
        )
        size = _stream_bytes(reading, context.config, material.family.instruct)
        largest = max(largest, size)
    return largest


def _stream_bytes(reading: Reading, config: StudyConfig, model: HookedModel) -> int:
    """Streams of every model of a reading, and their difference."""
    sites = len(read_sites(reading.sites, config, model.n_layers))
    positions = len(reading.positions or config.positions)
    sets = len(reading.models) + 1
    rows = sets * len(reading.prompts) * sites * positions
    return rows * model.d_model * model.dtype.itemsize


def _part_plan(
    name: str,
    counts: PassCounts,
    cost: Cost,
    rates: "_Rates",
    loaded: int,
    material: Material,
    stream_bytes: int,
    statistics: float,
) -> PartPlan:
    low, middle, high = (
        seconds + statistics + rates.sampling.of(cost) for seconds in rates.of_passes(counts)
    )
    # logits of the widest batch, in float32
    logit_bytes = counts.widest * material.family.instruct.vocab_size * 4
    disk = (
        cost.answers * _ANSWER_BYTES + cost.tokens * _TOKEN_BYTES + cost.verdicts * _VERDICT_BYTES
    )
    if name != CHECKS:
        disk += _TABLE_BYTES
    note = ""
    if cost.verdicts:
        note = "judging is not in the time"
    if cost.requests:
        note = "judging and requests are not in the time"
    memory = loaded + stream_bytes + logit_bytes
    return PartPlan(name, counts, cost, middle, low, high, memory, disk, note)


@dataclass(frozen=True)
class _Rates:
    """Seconds per padded token, (fastest, usual, slowest), of a pass that reads streams and of one
    with logits at every token; and seconds of sampling.
    """

    stream: tuple[float, float, float]
    logits: tuple[float, float, float]
    sampling: SamplingTime

    def of_passes(self, counts: PassCounts) -> list[float]:
        """Seconds of these passes; logits are computed at some of their tokens."""
        seconds = []
        for stream, whole in zip(self.stream, self.logits, strict=True):
            of_logit = max(0.0, whole - stream)
            seconds.append(counts.padded_tokens * stream + counts.logit_tokens * of_logit)
        return seconds

    @classmethod
    def measured(cls, material: Material, config: StudyConfig) -> "_Rates":
        """From a few batches of the study's own questions, on the instruct model."""
        model, questions = material.family.instruct, material.questions
        spec = CaptureSpec(
            sites=read_sites("resid_post", config, model.n_layers), positions=config.positions
        )
        estimate = estimate_capture(model, questions, spec)
        tokens = estimate.padded_tokens
        seconds = estimate.seconds
        stream = (seconds.low / tokens, seconds.value / tokens, seconds.high / tokens)
        sampling = SamplingTime()
        if config.scores.how == "sample":
            sampling = SamplingTime.measured(model, questions, config.scores.samples)
        return cls(stream, _logit_rate(model, questions), sampling)


def _logit_rate(model: HookedModel, questions: QuestionSet) -> tuple[float, float, float]:
    prompts = next(text_chunks(model, list(questions.prompts()[:_ROWS_TIMED])))
    rates = []
    for _ in range(4):
        with counted_passes() as counts:
            began = time.perf_counter()
            model.token_logprobs(prompts)
            rates.append((time.perf_counter() - began) / counts.padded_tokens)
    del rates[0]  # it warms up
    return min(rates), float(np.median(rates)), max(rates)
