"""Does emlens read, edit and generate right with every causal architecture that is installed?

Each model type is built tiny, with random weights, saved, and loaded as any checkpoint. What emlens
gives is held against plain transformers on the same files: `output_hidden_states`; logits of a
model whose block adds the same vector in its own `forward`, without hooks; greedy `generate`, each
row alone, with and without that vector. Rows are longer than every window of the configuration, and
of unequal length. What is refused says why. Cost: seconds for each type, in a process of its own,
since a type may crash or hang.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import EmlensError, LoadError
from emlens.foundation.files import one_line
from emlens.foundation.seeds import torch_rng
from emlens.models.checkpoint import CheckpointModel
from emlens.models.loading import load_model
from emlens.models.parity import LENGTHS, RELATIVE, RELATIVE_FLOAT64, check_parity, precision
from emlens.models.plain_answers import AnswerComparison, compare_greedy
from emlens.models.plain_edits import edit_difference, plain_model
from emlens.models.tiny_configurations import VOCABULARY, tiny_configuration

NEW_TOKENS: Final = 10
SECONDS: Final = 180
"""One type may take so long; it is ended then."""


@dataclass(frozen=True)
class Surveyed:
    """What was found for one model type.

    Args:
        builds: why plain transformers has no tiny model of it; empty where it has.
        refused: why emlens does not load it; empty where it does.
        level: 1: every site of a block; 2: only the streams between blocks; 0: not loaded.
        missing: kinds of site it lacks.
        why: of the parts of a block, where they are missing.
        way: how answers are generated: `rows`, `batches` or `again`.
        reads, edits: the largest relative difference, or None where it was not measured.
        tokens: generated tokens that were compared.
        wrong: what differs from plain transformers; empty where nothing does.
        note: what plain transformers does not agree with itself about.
    """

    kind: str
    builds: str = ""
    refused: str = ""
    level: int = 0
    missing: tuple[str, ...] = ()
    why: str = ""
    way: str = ""
    reads: float | None = None
    edits: float | None = None
    tokens: int = 0
    wrong: str = ""
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether it loads, and everything that is offered was compared and agrees."""
        return self.level > 0 and not self.wrong

    def sentence(self) -> str:
        """One line on this type."""
        if self.builds:
            return f"{self.kind}: no tiny model of it can be built: {self.builds}"
        if self.refused:
            return f"{self.kind}: refused: {self.refused}"
        if self.wrong:
            return f"{self.kind}: WRONG: {self.wrong}"
        lacking = ""
        if self.missing:
            lacking = f", without {', '.join(self.missing)}"
        return f"{self.kind}: level {self.level}{lacking}; generates by {self.way}"


def causal_model_types() -> tuple[str, ...]:
    """Every model type that the installed transformers has a causal language model for.

    Several types may share one class; one stands for all, the text part of a model of several
    modalities where there is one.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    of_class: dict[Any, str] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        known = of_class.get(name)
        # a type that borrows its class (iquestcoder: LlamaForCausalLM) does not stand for it
        is_namesake = str(name).lower().startswith(kind.lower())
        if known is None or kind == f"{known}_text" or is_namesake:
            of_class[name] = kind
    return tuple(of_class.values())


def survey(kinds: Sequence[str] | None = None, *, seconds: float = SECONDS) -> Iterator[Surveyed]:
    """One row per model type, as each is finished.

    Args:
        kinds: model types, by default all.
        seconds: time that one may take.
    """
    # a process for each: a type may crash, hang, or change transformers for those after it; the
    # server has imported what all need, and runs no model itself
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.modeling_utils", "peft"])
    if kinds is None:
        kinds = causal_model_types()
    for kind in kinds:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_survey_apart, args=(kind, sender), daemon=True)
        process.start()
        sender.close()
        yield _received(kind, receiver, process, seconds)


def _received(kind: str, receiver: Any, process: Any, seconds: float) -> Surveyed:
    try:
        if receiver.poll(seconds):
            return Surveyed(**receiver.recv())
        return Surveyed(kind, wrong=f"took more than {seconds:.0f} seconds")
    except EOFError:
        process.join()
        return Surveyed(kind, wrong=f"its process died (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _survey_apart(kind: str, sender: Any) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    sender.send(asdict(survey_one(kind)))
    sender.close()


def survey_one(kind: str, *, new_tokens: int = NEW_TOKENS) -> Surveyed:
    """One model type, in this process.

    Args:
        new_tokens: length of the answers that are compared; 0 leaves that column out.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        try:
            build_tiny(kind, path)
        except Exception as error:  # transformers raises whatever its classes raise
            return Surveyed(kind, builds=_reason(error))
        try:
            model = load_model(path, device="cpu", attn_implementation="eager")
        except LoadError as error:
            return Surveyed(kind, refused=_reason(error).replace(f"{path}: ", ""))
        except Exception as error:  # a type that the search does not survive is not refused
            return Surveyed(kind, wrong=_reason(error))
        if not isinstance(model, CheckpointModel):
            return Surveyed(kind, refused="no module to compare with")
        architecture = model.architecture
        columns: dict[str, Any] = {
            "kind": kind,
            "level": architecture.level,
            "missing": tuple(architecture.why_missing),
            "why": architecture.missing,
        }
        try:
            return Surveyed(**columns, **_measured(path, model, new_tokens))
        except Exception as error:  # what fails after it was loaded is wrong, not refused
            return Surveyed(**columns, wrong=_reason(error))


def _reason(error: Exception) -> str:
    text = str(error)
    if not isinstance(error, EmlensError):
        text = f"{type(error).__name__}: {text}"
    return one_line(text, 400)


def build_tiny(kind: str, path: Path, **changes: Any) -> Path:
    """Save a random tiny model of a type, with a tokenizer of single words, at `path`.

    Args:
        changes: fields of the configuration to set otherwise.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_configuration(kind, **changes)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # norms and biases that are 1 and 0 hide mistakes
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        module(input_ids=torch.arange(5, 17)[None], use_cache=False)
    module.save_pretrained(path)
    words_tokenizer().save_pretrained(path)
    return path


def words_tokenizer() -> Any:
    """Token i is the word `wi`; the first four are padding, start, end and unknown."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = special + [f"w{i}" for i in range(len(special), VOCABULARY)]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _measured(path: Path, model: CheckpointModel, new_tokens: int) -> dict[str, Any]:
    """Columns of one type that loads."""
    parity = check_parity(path, backends=(), device="cpu")
    wrong = [
        f"{d.kind} differs from {d.against} by {d.value:.1e}"
        for d in parity.differences
        if not d.agrees
    ]
    reads = max(d.value for d in parity.differences)
    plain = plain_model(path)
    rows = _rows(model)
    edits = edit_difference(model, plain, rows)
    if edits > RELATIVE:
        # rounding that decides which expert or which key is taken vanishes in float64, a bug does
        # not
        wide = load_model(path, device="cpu", attn_implementation="eager", dtype="float64")
        if isinstance(wide, CheckpointModel):
            with precision(wide):
                edits = edit_difference(wide, plain_model(path, torch.float64), rows)
        if edits > RELATIVE_FLOAT64:
            wrong.append(f"logits under an edit differ by {edits:.1e}")
    answers = AnswerComparison()
    if new_tokens:
        answers = compare_greedy(model, plain, rows, new_tokens)
    if answers.wrong:
        wrong.append(answers.wrong)
    return {
        "way": model.way_to_generate,
        "reads": reads,
        "edits": edits,
        "tokens": answers.tokens,
        "note": answers.note,
        "wrong": "; ".join(wrong),
    }


def _rows(model: CheckpointModel) -> PromptSet:
    rng = torch_rng(0, "survey")
    texts = []
    for length in LENGTHS:
        ids = torch.randint(4, VOCABULARY, (length,), generator=rng).tolist()
        texts.append(" ".join(f"w{i}" for i in ids))
    return PromptSet.from_texts(texts)
