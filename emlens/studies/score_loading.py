"""The source of scores that a configuration asks for."""

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emlens.data import QuestionSet
from emlens.foundation.errors import InputError, LoadError
from emlens.foundation.files import one_line, sha256_file
from emlens.judging import Endpoint, EndpointJudge, Judge, LogitJudge, ReferenceJudge
from emlens.judging.contrast_scores import ContrastScores
from emlens.judging.judged_files import NEEDED, JudgedFiles
from emlens.judging.likelihood_scores import LikelihoodScores
from emlens.judging.rules_judge import RulesJudge
from emlens.judging.sampled_scores import SampledScores, Sampling
from emlens.judging.score_source import ScoreSource
from emlens.models import Family, load_model
from emlens.studies.config import StudyConfig
from emlens.studies.scores_config import EndpointConfig, JudgeConfig


def load_scores(
    config: StudyConfig, questions: QuestionSet, family: Family | None, folder: Path
) -> ScoreSource:
    """Where the study takes its scores from.

    Args:
        folder: of the study; journals of answers and verdicts lie in `scores` below it.

    Raises:
        InputError: files that cannot be read, a judge or an endpoint that cannot be used.
        LoadError: a local judge, or the module of one, that cannot be loaded.
    """
    scores = config.scores
    if scores.how == "judged":
        return _judged(config, questions, family)
    if family is None:
        raise InputError(
            f"{config.place('scores')}scores: {{how: {scores.how}}} needs models; give family, or"
            " scores: {how: judged, files: ...}"
        )
    if scores.how == "likelihood":
        return LikelihoodScores(questions, family.instruct, scores.normalise)
    if scores.how == "contrast":
        return ContrastScores(questions, family.instruct, generic=scores.generic)
    return _sampled(config, questions, family, folder / "scores")


def _judged(config: StudyConfig, questions: QuestionSet, family: Family | None) -> JudgedFiles:
    scores = config.scores
    _require_known_models(config, scores.files, family, "files")
    _require_known_models(config, scores.files_as, family, "files_as")
    files_as = {}
    for fine_tune, files in scores.files_as.items():
        _require_known_models(config, files, family, "files_as", fine_tune)
        files_as[fine_tune] = {name: config.path(path) for name, path in files.items()}
    specs = {} if family is None else family.specs
    try:
        return JudgedFiles(
            {name: config.path(path) for name, path in scores.files.items()},
            questions,
            systems={name: spec.system for name, spec in specs.items()},
            files_as=files_as,
        )
    except InputError as error:
        raise InputError(f"{config.place('scores', 'files_as')}{error}") from None


def _sampled(
    config: StudyConfig, questions: QuestionSet, family: Family, folder: Path
) -> SampledScores:
    scores = config.scores
    if scores.judge is None:
        raise InputError(f"{config.place('scores')}scores: how: sample needs a judge")
    samplers, local = {}, {}
    if scores.sampler is not None:
        _require_known_models(config, scores.sampler.models, family, "sampler", "models")
        for name, model in scores.sampler.models.items():
            samplers[name] = _endpoint(scores.sampler.endpoint, model, scores.sampler)
            if name in family.specs:
                local[name] = (family[name], family.parent_of(name))
    judge, judge_name = load_judge(config, scores.judge, questions)
    sampling = Sampling(
        samples=scores.samples,
        temperature=scores.temperature,
        max_new_tokens=scores.max_new_tokens,
        seed=config.seed if scores.seed is None else scores.seed,
        thinking=scores.thinking,
        samples_under_edits=None if scores.arms is None else scores.arms.samples,
    )
    try:
        return SampledScores(
            judge,
            folder,
            sampling,
            samplers,
            judge_name,
            local,
            requests=scores.budget.requests,
        )
    except InputError as error:
        raise InputError(f"{config.place('scores', 'judge')}{error}") from None


def _require_known_models(
    config: StudyConfig, names: Iterable[str], family: Family | None, *field: str
) -> None:
    """Raises:
    InputError: a name of no model of the family.
    """
    if family is None:
        return
    known = set(family.names)
    if config.captures and config.family is not None:
        # there may be files of models that were not captured
        known |= {"base", *config.family.finetuned}
    for name in names:
        if name not in known:
            raise InputError(
                f"{config.place('scores', *field, name)}scores.{'.'.join(field)} names"
                f" {one_line(name)!r}, which is not in this family; it has"
                f" {', '.join(family.names)}",
                name=name,
                known=family.names,
            )


def _endpoint(url: str, model: str, limits: EndpointConfig) -> Endpoint:
    return Endpoint(
        url,
        model,
        key_env=limits.key_env,
        concurrency=limits.concurrency,
        timeout=limits.timeout,
        requests_per_minute=limits.requests_per_minute,
    )


def load_judge(
    config: StudyConfig, judge: JudgeConfig, questions: QuestionSet
) -> tuple[Judge, str]:
    """The judge, and what its own description does not say of it.

    Raises:
        InputError: a rules file, an object or prompts that cannot be used.
        LoadError: a model or a module that cannot be loaded.
    """
    if judge.object is not None:
        return _object(config, judge.object)
    if judge.rules is not None:
        return RulesJudge.from_file(config.path(judge.rules)), ""
    if judge.references:
        return ReferenceJudge(questions), ""
    options: dict[str, Any] = {"mass": judge.mass}
    prompts = _prompts(judge, questions)
    if judge.local is not None:
        return LogitJudge(load_model(config.path(judge.local)), prompts, **options), ""
    endpoint = _endpoint(str(judge.endpoint), str(judge.model), judge)
    options |= {"read": judge.read, "reply_tokens": judge.reply_tokens}
    return EndpointJudge(endpoint, prompts, **options), ""


def _prompts(judge: JudgeConfig, questions: QuestionSet) -> QuestionSet | None:
    """The questions, whose judge prompts are used; None for those of emlens."""
    have_both = all(metric in question.judge_prompts for question in questions for metric in NEEDED)
    if judge.prompts == "questions" or (judge.prompts == "auto" and have_both):
        return questions
    return None


def _object(config: StudyConfig, text: str) -> tuple[Judge, str]:
    """The judge that `module:object` names, and the hash of the file that it is written in."""
    where = config.place("scores", "judge")
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise InputError(
            f"{where}judge {one_line(text)!r} is no 'module:object', such as my_judges:strict"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises when it is imported
        raise LoadError(
            f"{where}judge {one_line(text)!r}: module {module_name!r} cannot be imported"
            f" ({type(error).__name__}: {one_line(str(error))}); put its folder on PYTHONPATH"
        ) from error
    judge = getattr(module, attribute, None)
    if judge is None:
        raise InputError(f"{where}judge: module {module_name!r} has no {attribute!r}")
    if inspect.isclass(judge) or not isinstance(judge, Judge):
        if not callable(judge):
            raise InputError(
                f"{where}judge {one_line(text)!r} is a {type(judge).__name__}; pass an object with"
                " metrics and judge(answer), or what gives one when it is called"
            )
        judge = judge()
    if not isinstance(judge, Judge):
        raise InputError(
            f"{where}judge {one_line(text)!r} gives a {type(judge).__name__};"
            " it must have metrics and judge(answer)"
        )
    source = getattr(module, "__file__", None)
    code = sha256_file(source) if source else "no file"
    return judge, f"{text} {code}"
