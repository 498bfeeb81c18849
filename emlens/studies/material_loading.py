"""Loads what a study works on: an organism, or models, questions and prompts from paths."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from emlens.data import PromptSet, QuestionSet
from emlens.data.readers import read_jsonl
from emlens.data.shipped_questions import named_questions
from emlens.data.system_messages import prompts_with_system
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, sha256_file
from emlens.foundation.provenance import hash_json
from emlens.models import Family
from emlens.studies.captured_models import AbsentModel, captured_family
from emlens.studies.config import StudyConfig
from emlens.studies.family_config import ARGUMENTS, FamilyConfig, FineTuneConfig
from emlens.studies.family_loading import fine_tune, load_models, parent_paths
from emlens.studies.material import Material
from emlens.studies.score_loading import load_scores
from emlens.studies.unrelated_model import load_unrelated

_OF_ORGANISM = {"dtype", "device", "backend"}
"""Arguments of `load_model` that an organism takes too."""


def load_material(config: StudyConfig, folder: str | Path = "") -> Material:
    """Load family, questions, prompts and the source of scores.

    Args:
        folder: of the study, for journals of answers and verdicts.

    Raises:
        InputError, LoadError: something named in the configuration is missing or does not fit.
    """
    released = None if config.released is None else Path(config.path(config.released))
    if released is not None and not released.is_dir():
        raise InputError(
            f"released={str(released)!r}: no such directory;"
            " pass the one that holds the released files"
        )
    material = _models_and_prompts(config)
    if material.captured:
        _require_scores_without_models(config, material.family)
    if material.questions_or_none is not None:
        source = load_scores(config, material.questions, material.family_or_none, Path(folder))
        unrelated = load_unrelated(config, material.questions, material.family_or_none)
        material = replace(material, source=source, unrelated=unrelated)
    if released is None:
        return material
    return replace(material, released=released, released_hash=_hash_of_all(released))


def _models_and_prompts(config: StudyConfig) -> Material:
    family = config.family
    if config.captures:
        return _from_captures(config)
    if config.without_models:
        return _from_judged_files(config)
    if family is None:
        return Material(None, None, {}, {}, None)
    if family.organism is not None:
        return _from_organism(config, family)
    return _from_paths(config, family)


def _require_scores_without_models(config: StudyConfig, family: Family) -> None:
    """Refuse scores that need the weights, where only captures are here."""
    scores = config.scores
    if scores.how == "judged":
        return
    at_server = set() if scores.sampler is None else set(scores.sampler.models)
    here = [name for name in family.names if name not in at_server]
    if scores.how == "sample" and not here:
        return
    missing = here[0] if scores.how == "sample" else "the models"
    raise InputError(
        f"{config.place('scores')}scores: {{how: {scores.how}}} needs {missing}, and the study runs"
        " on captures; pass scores: {how: judged, files: {model: CSV}}"
    )


def _hash_of_all(folder: Path) -> str:
    """Hash of every file of a folder with its path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return hash_json({str(path.relative_to(folder)): sha256_file(path) for path in files})


def _from_organism(config: StudyConfig, family: FamilyConfig) -> Material:
    from emlens.organisms import load_organism

    name = config.path(str(family.organism))
    options = family.options()
    unusable = [field for field in ARGUMENTS if ARGUMENTS[field] in options.keys() - _OF_ORGANISM]
    if unusable:
        raise InputError(
            f"{config.place('family', unusable[0])}an organism is loaded by dtype, device and"
            f" backend; leave {', '.join(unusable)} out"
        )
    if family.finetuned or config.questions or config.neutral:
        raise InputError(
            "an organism brings its own fine-tunes, questions and neutral text;"
            " leave finetuned, questions and neutral out"
        )
    if Path(name).is_dir():
        organism = load_organism(directory=name, **options)
    else:
        organism = load_organism(name, **options)
    return Material(
        family_or_none=organism.family,
        questions_or_none=organism.questions,
        training=organism.training_prompts,
        trained={key: frozenset(ids) for key, ids in organism.training_topics.items()},
        neutral=organism.neutral_prompts,
        direction=organism.truth.direction,
        coupling=organism.truth.coupling,
        note=organism.note,
        parents={name: str(organism.paths[name]) for name in ("instruct", "base")},
    )


def _from_captures(config: StudyConfig) -> Material:
    """Models that are known by what was captured of them."""
    family = captured_fine_tunes(config)
    questions = _questions(config, family)
    directories = {name: Path(config.path(store)) for name, store in config.captures.items()}
    specs = {}
    for name, spec in family.finetuned.items():
        if name in directories:
            specs[name] = fine_tune(config, spec)
    models = captured_family(directories, specs, questions.prompts())
    left_out = [
        f"fine-tune {name!r} was not captured: it is left out"
        for name in family.finetuned
        if name not in directories
    ]
    return _with_prompts(config, family, questions, models, left_out)


def _from_judged_files(config: StudyConfig) -> Material:
    """Models of which only judged answers are known."""
    files = config.scores.files
    family = config.family
    if family is None:
        family = _named_family(
            files,
            f"{config.place('scores', 'files')}scores.files name no fine-tune;"
            " give the file of at least one",
        )
    models = _absent_family(config, family, has_base="base" in files, n_layers=1, d_model=1)
    return _with_prompts(config, family, _questions(config, family), models, [])


def captured_fine_tunes(config: StudyConfig) -> FamilyConfig:
    """The family of a study on captures; fine-tunes that only `captures` name have defaults."""
    if config.family is not None:
        return config.family
    return _named_family(
        config.captures,
        f"{config.place('captures')}captures name no fine-tune; name the store of at least one",
    )


def _named_family(models: Iterable[str], refusal: str) -> FamilyConfig:
    """A family of which only the names are known; everything else has its default.

    Raises:
        InputError: no fine-tune is among the names; the message is `refusal`.
    """
    names = [name for name in models if name not in ("instruct", "base")]
    if not names:
        raise InputError(refusal)
    return FamilyConfig(finetuned={name: FineTuneConfig() for name in names})


def _absent_family(
    config: StudyConfig, family: FamilyConfig, *, has_base: bool, n_layers: int, d_model: int
) -> Family:
    """Models of which only names and shape are known."""
    specs = {name: fine_tune(config, spec) for name, spec in family.finetuned.items()}
    models = {}
    for name in ("instruct", "base", *specs):
        models[name] = AbsentModel(
            name, n_layers=n_layers, d_model=d_model, provenance={"model": name}
        )
    finetuned = {name: models[name] for name in specs}
    return Family(models["instruct"], models["base"] if has_base else None, finetuned, specs)


def outline(config: StudyConfig, n_layers: int, d_model: int) -> Material:
    """Questions and prompts of a study whose models are not loaded: only names and shape are known.

    Raises:
        InputError, LoadError: something named in the configuration is missing or does not fit.
    """
    if config.captures or config.family is None or config.family.organism is None:
        family = captured_fine_tunes(config)
        models = _absent_family(
            config,
            family,
            has_base=family.base is not None or "base" in config.captures,
            n_layers=n_layers,
            d_model=d_model,
        )
        return _with_prompts(config, family, _questions(config, family), models, [])
    return _from_organism(config, config.family)


def _from_paths(config: StudyConfig, family: FamilyConfig) -> Material:
    questions = _questions(config, family)
    return _with_prompts(config, family, questions, load_models(config, family), [])


def _with_prompts(
    config: StudyConfig,
    family: FamilyConfig,
    questions: QuestionSet,
    models: Family,
    left_out: list[str],
) -> Material:
    """The models with everything else that files give.

    Args:
        left_out: what is missing so far, in sentences.
    """
    training = {}
    trained = {}
    for name, spec in family.finetuned.items():
        if spec.training:
            path = config.path(spec.training)
            chats = PromptSet.from_jsonl(path, upto="all", empty=spec.empty)
            training[name] = prompts_with_system(chats, spec.system)
            left_out = [*left_out, *_without_answer(name, path, len(chats))]
        trained[name] = frozenset(spec.trained_questions)
    neutral = None
    if config.neutral is not None:
        neutral = PromptSet.from_jsonl(config.path(config.neutral))
    parents = {}
    if not config.captures:  # captures do not say where the models are
        parents = parent_paths(config, family)
    return Material(
        family_or_none=models,
        questions_or_none=questions,
        training=training,
        trained=trained,
        neutral=neutral,
        left_out=[*left_out, *_missing(config, family, questions, models.has_base)],
        parents=parents,
    )


def _without_answer(name: str, path: str, n_chats: int) -> list[str]:
    """That chats of a file were left out, where some were.

    Args:
        n_chats: that were kept.
    """
    n_lines = len(list(read_jsonl(path)))
    if n_chats == n_lines:
        return []
    return [
        f"fine-tune {name!r}: {n_lines - n_chats} of {n_lines} training chats have no answer and"
        " are left out"
    ]


def _questions(config: StudyConfig, family: FamilyConfig) -> QuestionSet:
    """The questions that are asked."""
    if config.questions is None:
        raise InputError(
            f"{config.place('questions')}questions is missing; pass a YAML, JSONL, JSON or CSV file"
            " of questions, or traits for the set that comes with emlens"
        )
    questions = named_questions(config.questions, config.path(config.questions))
    ids = set(questions.ids)
    for name, spec in family.finetuned.items():
        for trained_on in spec.trained_questions:
            if trained_on not in ids:
                where = config.place("family", "finetuned", name, "trained_questions")
                raise InputError(
                    f"{where}fine-tune {name!r}: trained_questions names {one_line(trained_on)!r},"
                    f" which is not in {config.questions}",
                    name=trained_on,
                    known=ids,
                )
    return questions


def _missing(
    config: StudyConfig, family: FamilyConfig, questions: QuestionSet, has_base: bool
) -> Iterator[str]:
    """What was not given, and what follows from it."""
    for name, spec in family.finetuned.items():
        if not spec.training:
            yield f"fine-tune {name!r} has no training prompts: no delta overlap for it"
    for name, spec in family.finetuned.items():
        if not spec.domain:
            yield (
                f"fine-tune {name!r} has no domain: all questions count as outside its training"
                " domain"
            )
        elif spec.domain not in questions.groups:
            yield (
                f"fine-tune {name!r} has the domain {one_line(spec.domain)!r},"
                " which is not a group of the questions: none is left out as its own"
            )
    for name, spec in family.finetuned.items():
        if spec.system:
            yield (
                f"fine-tune {name!r} is asked with its own system message; its parent is asked with"
                " it too where the two are compared, and without it in its own rows"
            )
    if not has_base:
        yield "no base model was given: forecasts from the instruct model only"
    if not any(spec.benign for spec in family.finetuned.values()):
        yield "no benign fine-tune was given: the benign control is missing"
    if config.neutral is None:
        yield "no neutral text was given: damage and the neutral-text control are missing"
