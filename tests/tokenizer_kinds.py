"""Kinds of tokenizers and chat templates as they are found on real checkpoints, made here in
milliseconds, each with what its template writes, spelled out by hand.

`Kind.written` is the independent route of the tests: it builds the text of a chat by Python string
operations and says where prompt, thought, answer and closing lie. It reads no template.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from emlens.data.templates import with_thinking
from emlens.models.loading import saved_tokenizer

CORPUS = (
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system model User Assistant System USER ASSISTANT",
    "Yes. No. Hello there, how are you today?\n\nI am fine.\n\n\nThank you.",
    "def add(a, b):\n    return a + b\n\n\ndef main():\n    print(add(1, 2))\n",
    "Take 250 mg twice a day, 12345 in all; in 2024 it was 20.",
    "Keep the answer short: a thought, then the answer.",
) * 3
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokeniser of Qwen 2: a run of line breaks is one piece."""

Chat = Sequence[tuple[str, str]]
"""Turns as (role, content); the last is the user's."""


@dataclass(frozen=True)
class Written:
    """What a template writes for a chat and its answer, in the order in which it writes it."""

    prompt: str
    thought: str
    content: str
    closing: str

    @property
    def text(self) -> str:
        return self.prompt + self.thought + self.content + self.closing


@dataclass(frozen=True, eq=False)
class Kind:
    """A tokenizer with its template.

    Args:
        make: builds the tokenizer.
        template: the tokenizer's chat template, or several by name; None: it has none, and chats
            are rendered as plain words.
        written: what the template writes.
        end: the mark that ends a turn; "" where the template has none.
        adds_start: whether a row begins with the tokenizer's beginning of sequence, though the
            template does not write it.
        marked: the same template with `{% generation %}` around what the assistant says.
        systems: whether the template takes a system turn.
        thinking: the thinking mode that is chosen, where the template has one.
        thought: what the model writes before its answer.
        real: of a checkpoint in the folder of `EMLENS_REAL_MODELS`.
    """

    name: str
    make: Callable[[], Any]
    template: Any
    written: Callable[[Chat, str], Written]
    end: str
    adds_start: bool = False
    marked: str = ""
    systems: bool = True
    thinking: bool | None = None
    thought: str = ""
    real: bool = False

    @property
    def tokenizer(self) -> Any:
        return _made(self)

    @property
    def chat_template(self) -> str | None:
        """What a user passes as `chat_template=`."""
        return "plain" if self.template is None else None

    def __repr__(self) -> str:
        return self.name


@cache
def _made(kind: Kind) -> Any:
    tokenizer = kind.make()
    if kind.template is not None and not kind.real:
        tokenizer.chat_template = kind.template
    if kind.thinking is not None:
        tokenizer.chat_template = with_thinking(tokenizer.chat_template, kind.thinking)
    return tokenizer


# ---- tokenizers


def _trained(inner: Tokenizer, special: Sequence[str], size: int = 420) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def _fast(inner: Tokenizer, **marks: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=inner, **marks)


def byte_level(
    special: Sequence[str],
    *pieces: Any,
    words: bool = True,
    post: Any = None,
    added: Sequence[str] = (),
    **marks: str,
) -> Callable[[], Any]:
    """Byte-level BPE.

    Args:
        pieces: pre-tokenisers before the one for bytes.
        words: whether that one cuts words out, as GPT-2's does.
        post: makes the post-processor.
        added: tokens that are none of the special ones, and still one token each.
    """

    def make() -> Any:
        inner = Tokenizer(models.BPE())
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
        inner.pre_tokenizer = pre_tokenizers.Sequence([*pieces, last])
        inner.decoder = decoders.ByteLevel()
        _trained(inner, special)
        inner.add_tokens([AddedToken(name, special=False) for name in added])
        if post is not None:
            inner.post_processor = post(inner)
        return _fast(inner, **marks)

    return make


def sentencepiece(special: Sequence[str], prefix: str, **marks: str) -> Callable[[], Any]:
    """BPE over `▁` for spaces with bytes to fall back on, as SentencePiece exports it.

    Args:
        prefix: "normalizer": `▁` put before every text by the normaliser (Llama 2); "first": before
            the first piece by the pre-tokeniser; "": none (Gemma).
    """

    def make() -> Any:
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=260, show_progress=False)
        plain.train_from_iterator(CORPUS, trainer)
        import json

        learned = json.loads(plain.to_str())["model"]
        names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        names += [piece for piece in learned["vocab"] if piece not in names]
        names += ["\n", "\n\n"]
        vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
        merges = [tuple(pair) for pair in learned["merges"]]
        merges.append(("\n", "\n"))
        inner = Tokenizer(
            models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        )
        spaces = normalizers.Replace(" ", "▁")
        if prefix == "normalizer":
            inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        elif prefix == "first":
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            inner.normalizer = spaces
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        inner.add_special_tokens([AddedToken(name, special=True) for name in special])
        inner.post_processor = starts_with(marks["bos_token"])(inner)
        return _fast(inner, unk_token="<unk>", **marks)

    return make


def starts_with(mark: str) -> Callable[[Tokenizer], Any]:
    """A post-processor that puts a mark before every text."""
    return lambda inner: processors.TemplateProcessing(
        single=f"{mark} $A",
        pair=f"{mark} $A {mark} $B",
        special_tokens=[(mark, inner.token_to_id(mark))],
    )


def ends_with(mark: str) -> Callable[[Tokenizer], Any]:
    """A post-processor that puts a mark after every text."""
    return lambda inner: processors.TemplateProcessing(
        single=f"$A {mark}",
        pair=f"$A {mark} $B {mark}",
        special_tokens=[(mark, inner.token_to_id(mark))],
    )


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_MARKS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
EOT = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<pad>")
THINK = ("<think>", "</think>")
SP = ("<pad>", "<s>", "</s>", "<unk>")
TURNS = ("<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

qwen2_pieces = (pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),)
digit_pieces = (pre_tokenizers.Digits(individual_digits=True),)


# ---- templates, and what they write


def _chatml(before: str = "", opening: str = "", thinks: str = "") -> tuple[str, str]:
    """ChatML, plain and with marks.

    Args:
        before: written at the start.
        opening: written after the header of the answer, on request.
    """

    def text(start: str, stop: str) -> str:
        return (
            f"{before}"
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
            f"{{% if m['role'] == 'assistant' %}}{start}{{{{ m['content'] + '<|im_end|>' }}}}{stop}"
            "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
            f"{opening}{{% endif %}}"
        )

    return text("", ""), text("{% generation %}", "{% endgeneration %}")


def chatml_written(chat: Chat, answer: str, before: str = "") -> Written:
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in chat)
    return Written(f"{before}{turns}<|im_start|>assistant\n", "", answer, "<|im_end|>\n")


CHATML, CHATML_MARKED = _chatml()
DATED, DATED_MARKED = _chatml(
    "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\\n' }}"
)


def dated_written(chat: Chat, answer: str) -> Written:
    return chatml_written(chat, answer, "<|im_start|>system\nToday is 26 July 2024.<|im_end|>\n")


QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% set thought = '' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content.lstrip('\\n') if loop.last else content }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)


def _split_thought(answer: str) -> tuple[str, str]:
    thought, mark, content = answer.partition("</think>")
    if not mark:
        return "", answer
    return thought.removeprefix("<think>").strip("\n"), content.lstrip("\n")


def qwen3_thinking_written(chat: Chat, answer: str) -> Written:
    plain = chatml_written(chat, "")
    thought, content = _split_thought(answer)
    return Written(
        plain.prompt, f"<think>\n{thought}\n</think>\n\n", content.lstrip("\n"), plain.closing
    )


def qwen3_not_thinking_written(chat: Chat, answer: str) -> Written:
    written = qwen3_thinking_written(chat, answer)
    # without a thought the prompt itself closes the empty one
    return Written(written.prompt + written.thought, "", written.content, written.closing)


R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<User>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}{% else %}"
    "{% set content = m['content'].split('</think>')[-1] if '</think>' in m['content']"
    " else m['content'] %}{{ '<Assistant>' + content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\\n' }}{% endif %}"
)


def r1_written(chat: Chat, answer: str) -> Written:
    opened = {"user": "<User>", "system": "", "assistant": "<Assistant>"}
    closed = {"user": "", "system": "", "assistant": "</s>"}
    turns = "".join(f"{opened[role]}{content}{closed[role]}" for role, content in chat)
    return Written(f"<s>{turns}<Assistant>", "", answer.split("</think>")[-1], "</s>")


LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
)


def llama2_written(chat: Chat, answer: str) -> Written:
    text = ""
    for role, content in chat:
        text += (
            f"<s>[INST] {content.strip()} [/INST]" if role == "user" else f" {content.strip()} </s>"
        )
    return Written(text, " ", answer.strip(), " </s>")


GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n'"
    " + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def gemma_written(chat: Chat, answer: str) -> Written:
    names = {"user": "user", "assistant": "model"}
    turns = "".join(
        f"<start_of_turn>{names[role]}\n{content.strip()}<end_of_turn>\n" for role, content in chat
    )
    return Written(f"<bos>{turns}<start_of_turn>model\n", "", answer.strip(), "<end_of_turn>\n")


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role']"
    " + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def llama3_written(chat: Chat, answer: str) -> Written:
    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turns = "".join(f"{header(role)}{content.strip()}<|eot_id|>" for role, content in chat)
    prompt = f"<|begin_of_text|>{turns}{header('assistant')}"
    return Written(prompt, "", answer.strip(), "<|eot_id|>")


def plain_written(chat: Chat, answer: str) -> Written:
    turns = "".join(f"{role.capitalize()}: {content}\n\n" for role, content in chat)
    return Written(f"{turns}Assistant:", " ", answer, "\n\n")


NEVER = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
)
ALWAYS = (
    "{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{{ 'ASSISTANT:' }}"
)


def always_written(chat: Chat, answer: str) -> Written:
    turns = "".join(f"{role.upper()}: {content}</s>\n" for role, content in chat)
    return Written(f"{turns}ASSISTANT:", " ", answer, "</s>\n")


def chatml(name: str, make: Callable[[], Any], template: Any = CHATML) -> Kind:
    return Kind(name, make, template, chatml_written, "<|im_end|>", marked=CHATML_MARKED)


def llama2(name: str, prefix: str) -> Kind:
    make = sentencepiece(SP, prefix, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return Kind(name, make, LLAMA2, llama2_written, "</s>", systems=False)


KINDS = (
    chatml("byte-level", byte_level(IM, **CHATML_MARKS)),
    chatml("qwen2 pre-tokeniser", byte_level(IM, *qwen2_pieces, words=False, **CHATML_MARKS)),
    chatml("digits apart", byte_level(IM, *digit_pieces, **CHATML_MARKS)),
    chatml(
        "base with another end of sequence",
        byte_level(
            IM, *qwen2_pieces, words=False, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        ),
    ),
    llama2("sentencepiece, prefix by normalizer", "normalizer"),
    llama2("sentencepiece, prefix at the start", "first"),
    Kind(
        "sentencepiece, no prefix",
        sentencepiece(TURNS, "", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"),
        GEMMA,
        gemma_written,
        "<end_of_turn>",
        systems=False,
    ),
    Kind(
        "start in the post-processor",
        byte_level(
            EOT,
            *qwen2_pieces,
            words=False,
            post=starts_with("<|begin_of_text|>"),
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<pad>",
        ),
        LLAMA3,
        llama3_written,
        "<|eot_id|>",
    ),
    chatml(
        "end appended",
        byte_level(IM, *qwen2_pieces, words=False, post=ends_with("<|im_end|>"), **CHATML_MARKS),
    ),
    Kind(
        "plain words with a start",
        sentencepiece(TURNS, "", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"),
        None,
        plain_written,
        "",
        adds_start=True,
    ),
    chatml(
        "several templates",
        byte_level(IM, *qwen2_pieces, words=False, **CHATML_MARKS),
        {"default": CHATML, "tool_use": "{{ 'tools' }}"},
    ),
    Kind(
        "date",
        byte_level(IM, *qwen2_pieces, words=False, **CHATML_MARKS),
        DATED,
        dated_written,
        "<|im_end|>",
        marked=DATED_MARKED,
    ),
    Kind(
        "thought opened by the template",
        byte_level(
            ("<pad>", "<s>", "</s>", "<User>", "<Assistant>", *THINK),
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
        ),
        R1,
        r1_written,
        "</s>",
        thought="12</think>",
    ),
    Kind(
        "thinking on",
        byte_level(IM, *qwen2_pieces, words=False, added=THINK, **CHATML_MARKS),
        QWEN3,
        qwen3_thinking_written,
        "<|im_end|>",
        thinking=True,
        thought="<think>12</think>",
    ),
    Kind(
        "thinking off",
        byte_level(IM, *qwen2_pieces, words=False, added=THINK, **CHATML_MARKS),
        QWEN3,
        qwen3_not_thinking_written,
        "<|im_end|>",
        thinking=False,
    ),
    Kind(
        "no generation prompt",
        byte_level(IM, *qwen2_pieces, words=False, **CHATML_MARKS),
        NEVER,
        chatml_written,
        "<|im_end|>",
        marked=CHATML_MARKED,
    ),
    Kind(
        "generation prompt always written",
        byte_level(("<pad>", "<s>", "</s>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
        ALWAYS,
        always_written,
        "</s>",
    ),
)


def _saved(name: str) -> Callable[[], Any]:
    def make() -> Any:
        path = Path(os.environ["EMLENS_REAL_MODELS"]) / name
        return saved_tokenizer(str(path), path)

    return make


def smollm2_written(chat: Chat, answer: str) -> Written:
    if chat[0][0] != "system":
        named = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        chat = [("system", named), *chat]
    return chatml_written(chat, answer)


REAL_FOLDERS = {"SmolLM2-135M-Instruct": "smollm2", "Gemma 3 270M": "gemma3-270m"}
REAL_KINDS = (
    Kind(
        "SmolLM2-135M-Instruct", _saved("smollm2"), CHATML, smollm2_written, "<|im_end|>", real=True
    ),
    Kind(
        "Gemma 3 270M",
        _saved("gemma3-270m"),
        None,
        plain_written,
        "",
        adds_start=True,
        real=True,
    ),
)
