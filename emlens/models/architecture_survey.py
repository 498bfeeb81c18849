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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emlens.data.prompts import PromptSet
from emlens.foundation.errors import EmlensError, LoadError, StateError
from emlens.foundation.files import one_line
from emlens.foundation.intervention import Edit, PaddedRows
from emlens.foundation.seeds import torch_rng
from emlens.foundation.sites import Site
from emlens.models.checkpoint import CheckpointModel
from emlens.models.loading import load_model, make_ready
from emlens.models.parity import (
    RELATIVE,
    RELATIVE_FLOAT64,
    check_parity,
    precision,
    relative_difference,
)
from emlens.models.tiny_configurations import VOCABULARY, tiny_configuration

LENGTHS: Final = (17, 5, 11)
NEW_TOKENS: Final = 10
SECONDS: Final = 180
"""One type may take so long; it is ended then."""
_EDITED: Final = 4.0
"""Length of the added vector, in standard deviations of the stream."""


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
        known: dict[str, Any] = {
            "kind": kind,
            "level": architecture.level,
            "missing": tuple(architecture.why_missing),
            "why": architecture.missing,
        }
        try:
            return Surveyed(**known, **_measured(path, model, new_tokens))
        except Exception as error:  # what fails after it was loaded is wrong, not refused
            return Surveyed(**known, wrong=_reason(error))


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
    plain = _plain(path)
    rows = _rows(model)
    edits = _edits(model, plain, rows)
    if edits > RELATIVE:
        # rounding that decides which expert or which key is taken vanishes in float64, a bug does
        # not
        wide = load_model(path, device="cpu", attn_implementation="eager", dtype="float64")
        if isinstance(wide, CheckpointModel):
            with precision(wide):
                edits = _edits(wide, _plain(path, torch.float64), rows)
        if edits > RELATIVE_FLOAT64:
            wrong.append(f"logits under an edit differ by {edits:.1e}")
    generation = _Generation()
    if new_tokens:
        generation = _generated(model, plain, rows, new_tokens)
    if generation.wrong:
        wrong.append(generation.wrong)
    return {
        "way": model.way_to_generate,
        "reads": reads,
        "edits": edits,
        "tokens": generation.tokens,
        "note": generation.note,
        "wrong": "; ".join(wrong),
    }


def _edits(model: CheckpointModel, plain: Any, rows: PromptSet) -> float:
    """The largest difference of logits over edits at every place."""
    largest = 0.0
    for layer in range(model.n_layers):
        for where in _places(model, layer):
            largest = max(largest, _edited_difference(model, plain, where, rows))
    return largest


def _plain(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    module.generation_config = GenerationConfig()
    make_ready(module)
    return module


def _rows(model: CheckpointModel) -> PromptSet:
    rng = torch_rng(0, "survey")
    texts = []
    for length in LENGTHS:
        ids = torch.randint(4, VOCABULARY, (length,), generator=rng).tolist()
        texts.append(" ".join(f"w{i}" for i in ids))
    return PromptSet.from_texts(texts)


def _places(model: CheckpointModel, layer: int) -> list[Site]:
    sites = [Site("resid_post", layer)]
    if layer == 0:
        sites.append(Site("resid_pre", 0))
    if layer == model.n_layers - 1 and "final_norm" in model.site_kinds:
        sites.append(Site("final_norm"))
    return sites


def _vector(model: CheckpointModel) -> Tensor:
    return _EDITED * torch.randn(model.d_model, generator=torch_rng(1, "survey"))


def _edited_difference(model: CheckpointModel, plain: Any, site: Site, prompts: PromptSet) -> float:
    """Logits of emlens under an added vector, beside those of the model that adds it itself."""
    with model.intervene([_Added(_vector(model), site)]):
        found = _last_logits(model, prompts)
    expected = []
    with _adding(model, plain, site), torch.no_grad():
        for row in model.render(prompts):
            expected.append(plain(torch.tensor([row.ids]), use_cache=False).logits[0, -1])
    return relative_difference(found, torch.stack(expected))


def _last_logits(model: CheckpointModel, prompts: PromptSet) -> Tensor:
    """Scores after the last token of each row, in the model's own precision; one padded batch."""
    rows = model.render(prompts)
    (batch,) = model.batches(rows, 10_000)
    logits = model.run(batch, with_logits=True)
    if logits is None:
        raise StateError("the model returned no logits")
    last: list[Tensor] = [torch.empty(0)] * len(rows)
    for i, index in enumerate(batch.index):
        last[index] = logits[i, len(batch.rows[i].ids) - 1]
    return torch.stack(last)


@contextmanager
def _adding(model: CheckpointModel, plain: Any, site: Site) -> Iterator[None]:
    """The plain model with a module whose own `forward` adds the vector: no hook is involved."""
    path, is_input = model._place(site)
    module = plain.get_submodule(path)
    forward, vector = module.forward, _vector(model)
    module.forward = partial(_forward_and_add, forward, vector, is_input)
    try:
        yield
    finally:
        del module.forward


def _forward_and_add(
    forward: Callable[..., Any], vector: Tensor, is_input: bool, *args: Any, **kwargs: Any
) -> Any:
    if is_input:
        if args:
            args = (args[0] + vector, *args[1:])
        else:
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            kwargs = {**kwargs, name: kwargs[name] + vector}
        return forward(*args, **kwargs)
    output = forward(*args, **kwargs)
    if isinstance(output, tuple | list):
        return type(output)((output[0] + vector, *output[1:]))
    return output + vector


@dataclass
class _Generation:
    """What was compared.

    Args:
        length: of the longest answers, in tokens.
        tokens: how many of plain transformers.
        note: what plain transformers does not agree with itself about.
    """

    length: int = 0
    tokens: int = 0
    wrong: str = ""
    note: str = ""


def _generated(
    model: CheckpointModel, plain: Any, prompts: PromptSet, new_tokens: int
) -> _Generation:
    """Greedy answers, as they are and under an edit, beside those of plain transformers."""
    seen = _Generation(new_tokens)
    site = Site("resid_post", model.n_layers // 2)
    _compare_answers(seen, model, plain, prompts, "")
    with model.intervene([_Added(_vector(model), site)]), _adding(model, plain, site):
        _compare_answers(seen, model, plain, prompts, " under an edit")
    return seen


def _compare_answers(
    seen: _Generation, model: CheckpointModel, plain: Any, prompts: PromptSet, under: str
) -> None:
    answers = model.generate(prompts, max_new_tokens=seen.length, temperature=0)
    for row, answer in zip(model.render(prompts), answers, strict=True):
        by_passes = _text(model, _by_whole_passes(model, plain, row.ids, seen.length))
        try:
            by_generate = _text(model, _by_generate(model, plain, row.ids, seen.length))
        except Exception as error:  # some classes cannot generate with their own cache
            by_generate = by_passes
            seen.note = f"generate of transformers fails ({type(error).__name__})"
        seen.tokens += len(by_generate.split())
        if answer == by_generate:
            continue
        if answer == by_passes:  # what emlens gives is what whole passes give
            seen.note = "generate of transformers gives other tokens than its own whole passes"
            continue
        seen.wrong = f"generates {answer!r}{under}, plain transformers {by_generate!r}"


def _text(model: CheckpointModel, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _by_generate(
    model: CheckpointModel, plain: Any, ids: Sequence[int], length: int
) -> Sequence[int]:
    row = torch.tensor([ids])
    with torch.no_grad():
        output = plain.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=model.pad_id,
            eos_token_id=sorted(model.stops.ids),
        )
    new: list[int] = output[0, len(ids) :].tolist()
    return new


def _by_whole_passes(
    model: CheckpointModel, plain: Any, ids: Sequence[int], length: int
) -> Sequence[int]:
    new: list[int] = []
    while len(new) < length:
        with torch.no_grad():
            logits = plain(torch.tensor([[*ids, *new]]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in model.stops.ids:
            break
        new.append(token)
    return new


@dataclass(frozen=True, eq=False)
class _Added:
    """A vector added at one site, at every token."""

    vector: Tensor
    site: Site
    positions: Any = "all"
    by_prompt: bool = False

    @property
    def d_model(self) -> int:
        return len(self.vector)

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if site == self.site]

    def bind(self, site: Site, rows: PaddedRows) -> "_Addition":
        return _Addition(self.vector)

    def describe(self) -> dict[str, Any]:
        return {"kind": "added", "site": str(self.site)}


class _Addition(Edit):
    def __init__(self, vector: Tensor):
        self._vector = vector

    def __call__(
        self,
        activation: Float[Tensor, "batch token d_model"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token d_model"]:
        added = activation + self._vector.to(activation)
        if mask is None:
            return added
        return torch.where(mask[..., None], added, activation)
