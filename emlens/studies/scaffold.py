"""A first configuration from what lies in a folder: models, adapters, questions, chats, scores.

Files are told by their content, never by code in them: a checkpoint by its `config.json`, an
adapter by its `adapter_config.json`, chats by the `messages` of their first line, judged tables by
their columns. Names decide only what content cannot: which fine-tune is benign, which file of chats
belongs to which fine-tune. What was decided stands in the configuration as a comment.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from emlens.data import AlignmentScores, QuestionSet
from emlens.foundation.errors import EmlensError, InputError
from emlens.foundation.files import one_line
from emlens.studies.config import StudyConfig, largest_k

DEFAULT_K: Final = int(StudyConfig.model_fields["k"].default)
DEPTH: Final = 3
"""Folders below the given one that are looked into."""
MOST_ENTRIES: Final = 5000
_BENIGN: Final = ("benign", "careful", "good", "secure", "control", "safe", "neutral")
_FIRST_BYTES = 1_000_000
_QUESTION_ENDINGS = (".yaml", ".yml", ".jsonl", ".json", ".csv")
_TABLE_ENDINGS = (".csv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Found:
    """What lies in a folder; paths are relative to it.

    Args:
        checkpoints: full models → whether they have a chat template.
        adapters: adapter → the base that it names.
        questions: question sets → whether they have reference answers.
        asked: question sets → how many prompts they make.
        chats: files of training chats → how many there are.
        judged: judged table → the models it has scores of.
    """

    folder: Path
    checkpoints: Mapping[str, bool] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, bool] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    chats: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, Sequence[str]] = field(default_factory=dict)


def look_into(folder: str | Path) -> Found:
    """What a folder holds for a study.

    Raises:
        InputError: no such folder, or one with very many entries.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; pass the one with your models and files")
    checkpoints: dict[str, bool] = {}
    adapters: dict[str, str] = {}
    questions: dict[str, bool] = {}
    asked: dict[str, int] = {}
    chats: dict[str, int] = {}
    judged: dict[str, Sequence[str]] = {}
    for path in _entries(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            adapter, config = _json(path / "adapter_config.json"), _json(path / "config.json")
            if adapter is not None:
                adapters[name] = str(adapter.get("base_model_name_or_path") or "")
            elif config is not None and "model_type" in config:
                checkpoints[name] = _has_template(path)
        elif _is_chats(path):
            chats[name] = _lines(path)
        elif (models := _judged_models(path)) is not None:
            judged[name] = models
        elif (question_set := _questions(path)) is not None:
            questions[name] = _have_references(question_set)
            asked[name] = len(question_set.prompts())
    return Found(folder, checkpoints, adapters, questions, asked, chats, judged)


def _entries(folder: Path) -> Iterator[Path]:
    """Files and folders down to `DEPTH`, sorted; what lies in a model's folder is left out."""
    count = 0
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop(0)
        for path in sorted(place.iterdir()):
            count += 1
            if count > MOST_ENTRIES:
                raise InputError(
                    f"{folder}: holds more than {MOST_ENTRIES} entries; pass a folder"
                    " with the models and files of one study"
                )
            if path.name.startswith("."):
                continue
            yield path
            is_model = (path / "config.json").exists() or (path / "adapter_config.json").exists()
            if path.is_dir() and not is_model and depth + 1 < DEPTH:
                waiting.append((path, depth + 1))


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file() or path.stat().st_size > _FIRST_BYTES:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").exists():
        return True
    settings = _json(path / "tokenizer_config.json") or {}
    return bool(settings.get("chat_template"))


def _is_chats(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    with open(path, "rb") as handle:
        line = handle.readline(_FIRST_BYTES)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    turns = record.get("messages") if isinstance(record, dict) else None
    return isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict)


def _judged_models(path: Path) -> Sequence[str] | None:
    """The models of a table with the scores aligned and coherent; None for another file."""
    if path.suffix not in _TABLE_ENDINGS:
        return None
    try:
        scores = AlignmentScores.from_file(path)
    except (EmlensError, ImportError):
        return None
    if "aligned" not in scores.metrics or "coherent" not in scores.metrics:
        return None
    return scores.models


def _lines(path: Path) -> int:
    """Lines of a file with something in them."""
    with open(path, "rb") as handle:
        return sum(1 for line in handle if line.strip())


def _have_references(questions: QuestionSet) -> bool:
    return all({"careful", "harmful"} <= set(question.answers) for question in questions)


def _questions(path: Path) -> QuestionSet | None:
    """A question set; None for another file."""
    if path.suffix not in _QUESTION_ENDINGS:
        return None
    try:
        return QuestionSet.from_file(path)
    except EmlensError:
        return None


@dataclass(frozen=True)
class Choices:
    """What a study is to use of what was found.

    Args:
        base: pre-trained model, or "".
        finetuned: name → path.
        benign: names of the controls.
        training: name → file of chats.
        judged: model → judged table.
        judge: address of a judge, or "". judge_model: its name there.
    """

    instruct: str
    base: str = ""
    finetuned: Mapping[str, str] = field(default_factory=dict)
    benign: Sequence[str] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    questions: str = ""
    neutral: str = ""
    judged: Mapping[str, str] = field(default_factory=dict)
    judge: str = ""
    judge_model: str = ""


def guessed(found: Found, judge: str = "", judge_model: str = "") -> Choices:
    """The choices that what was found speaks for.

    Raises:
        InputError: no parent, no fine-tune, or no questions.
    """
    instruct = _parent(found)
    rest = [name for name in found.checkpoints if name != instruct]
    base = next((name for name in rest if not found.checkpoints[name]), "")
    finetuned = {_stem(path): path for path in found.adapters}
    finetuned |= {_stem(path): path for path in rest if path != base}
    if not finetuned:
        raise InputError(
            f"{found.folder}: holds no adapter and no second checkpoint; a study compares an"
            " instruct model with fine-tunes of it"
        )
    benign = [name for name in finetuned if any(word in name.lower() for word in _BENIGN)]
    questions = _preferred_questions(found)
    if not questions:
        raise InputError(
            f"{found.folder}: holds no file of questions; add a YAML, JSONL or CSV with id and text"
        )
    neutral = next((name for name in found.chats if "neutral" in name.lower()), "")
    training = _training(found, finetuned, neutral)
    judged = _judged(found, ["instruct", *finetuned], _stem(instruct))
    return Choices(
        instruct,
        base,
        finetuned,
        benign,
        training,
        questions,
        neutral,
        judged,
        judge,
        judge_model,
    )


def _stem(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _parent(found: Found) -> str:
    """The model that the adapters name, where it is here; else one with a chat template."""
    named = [_stem(base) for base in found.adapters.values() if base]
    for name in found.checkpoints:
        if _stem(name) in named:
            return name
    if found.adapters and not found.checkpoints:
        bases = sorted({base for base in found.adapters.values() if base})
        if len(bases) == 1:
            return bases[0]
    with_template = [name for name, has in found.checkpoints.items() if has]
    preferred = [name for name in with_template if "instruct" in name.lower()] or with_template
    if preferred:
        return preferred[0]
    raise InputError(
        f"{found.folder}: holds no checkpoint with a chat template, and the adapters name"
        f" {len(set(found.adapters.values()))} bases; put the instruct model there, or name it"
    )


def _preferred_questions(found: Found) -> str:
    """One with reference answers where there is one; else the first."""
    names = [name for name, references in found.questions.items() if references]
    return (names or list(found.questions) or [""])[0]


def _training(found: Found, finetuned: Mapping[str, str], neutral: str) -> dict[str, str]:
    """Fine-tune → the file of chats that shares its name, where exactly one does."""
    training = {}
    files = [name for name in found.chats if name != neutral]
    for name in finetuned:
        word = name.partition("@")[0].lower()
        alike = [file for file in files if word in _stem(file).lower() or _base(file) in word]
        # with fewer there is no subspace to compare
        if len(alike) == 1 and largest_k(found.chats[alike[0]], DEFAULT_K) >= 1:
            training[name] = alike[0]
    return training


def _base(file: str) -> str:
    return _stem(file).lower().partition(".")[0]


def _judged(found: Found, models: Sequence[str], instruct: str) -> dict[str, str]:
    """Model → the table that has its scores: by the models in it, else by the file's name."""
    files = {}
    for model in models:
        names = {model.lower(), instruct.lower()} if model == "instruct" else {model.lower()}
        for file, inside in found.judged.items():
            if any(name.lower() in names for name in inside) or _base(file) in names:
                files[model] = file
                break
    return files


def configuration(found: Found, choices: Choices) -> str:
    """A commented study configuration, as YAML.

    Raises:
        InputError: nothing of a study can run on these.
    """
    has_references = found.questions.get(choices.questions, False)
    all_judged = set(choices.judged) == {"instruct", *choices.finetuned}
    has_scores = bool(choices.judge) or has_references or all_judged
    if not has_scores and not choices.training:
        raise InputError(
            f"{found.folder}: the questions have no reference answers, no tables were judged for"
            " all models, and no file of chats belongs to a fine-tune, so no part of a study can"
            " run; pass --judge URL with --judge-model NAME, or add one of these"
        )
    lines = ["# What is asked; `emlens study --help` and docs/studies.md list the studies."]
    if has_scores:
        lines.append("study: overview")
    else:
        lines.append("# Scores need a judge (see below); this part needs none.")
        lines.append("study: delta_overlap")
    lines += ["", "family:", f"  instruct: {_scalar(choices.instruct)}"]
    if choices.base:
        lines.append(f"  base: {_scalar(choices.base)}          # it has no chat template")
    lines.append("  finetuned:")
    for name, path in choices.finetuned.items():
        lines += _fine_tune(name, path, choices)
    lines += ["", f"questions: {_scalar(choices.questions)}"]
    if choices.neutral:
        lines.append(f"neutral: {_scalar(choices.neutral)}          # unrelated chats, for damage")
    lines += _dimension(found, choices)
    return "\n".join([*lines, "", *_scores(choices, has_references, all_judged)]) + "\n"


def _dimension(found: Found, choices: Choices) -> list[str]:
    """`k`, where the prompts carry less than the default."""
    counts = [found.chats[file] for file in choices.training.values() if file in found.chats]
    if not counts:
        return []
    n = min([*counts, found.asked.get(choices.questions, min(counts))])
    k = largest_k(n, DEFAULT_K)
    if k == DEFAULT_K or k < 1:
        return []
    return [
        f"k: {k}                         # of the subspaces: half of {n} prompts a side carries no"
        f" more; with more prompts {DEFAULT_K}"
    ]


def _fine_tune(name: str, path: str, choices: Choices) -> list[str]:
    lines = [f"    {_scalar(name)}:", f"      path: {_scalar(path)}"]
    if name in choices.training:
        lines.append(f"      training: {_scalar(choices.training[name])}")
    else:
        lines.append("      # training: chats.jsonl    # what it was trained on, for delta_overlap")
    if name in choices.benign:
        lines.append(
            "      benign: true               # told by its name: a control on good answers"
        )
    lines.append("      # domain: medicine         # the questions' group that it was trained on")
    return lines


def _scores(choices: Choices, has_references: bool, all_judged: bool) -> list[str]:
    if all_judged:
        files = [f"    {_scalar(name)}: {_scalar(file)}" for name, file in choices.judged.items()]
        return [
            "scores:",
            "  how: judged                # answers that were judged elsewhere",
            "  files:",
            *files,
        ]
    if choices.judge:
        return [
            "scores:",
            "  how: sample",
            "  samples: 10                # to each question; the field draws 50 to 100",
            "  max_new_tokens: 300",
            "  judge:",
            f"    endpoint: {_scalar(choices.judge)}",
            f"    model: {_scalar(choices.judge_model)}",
            "    key_env: OPENAI_API_KEY  # the variable that holds the key",
        ]
    if has_references:
        return ["scores:", "  how: likelihood            # of the questions' reference answers"]
    return [
        "# scores:",
        "#   how: sample",
        '#   judge: {endpoint: "http://localhost:8000/v1", model: judge-model}',
    ]


def _scalar(text: str) -> str:
    """A text as one YAML value."""
    dumped = yaml.safe_dump(one_line(text, 500), default_flow_style=True, width=10_000)
    return str(dumped).partition("\n")[0]
