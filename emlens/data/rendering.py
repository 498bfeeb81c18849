"""Prompts → token ids, once.

Every backend and every position takes these ids; nothing is tokenised again later. A chat is
rendered by the tokenizer's template, or by an explicit one (a base model has none of its own).
Where a response is kept, its tokens follow the rendered prompt, and the boundary comes from ids:
the prompt's ids must be a prefix of the whole. No import of transformers: a tokenizer is anything
with the usual methods.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from emlens.data.prompts import Prompt
from emlens.foundation.errors import InputError
from emlens.foundation.files import one_line, sha256_text
from emlens.foundation.positions import RowSpans

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Roles as plain words, for models that know no chat tokens: one rendering that a base model and
its instruct version share.
"""
TEMPLATES = {"plain": PLAIN_TEMPLATE}
"""Templates that `chat_template=` takes by name."""

_SWITCHES = ("enable_thinking", "thinking")
# The empty text keeps a line break at the template's start, which Jinja would remove after a tag.
_SET = "{{% set {} = {} %}}{{{{ '' }}}}"
_WAS_SET = re.compile(r"{% set (?:enable_thinking|thinking) = (?:true|false) %}{{ '' }}")
# a tag that reads the variable itself, not an attribute or a text of that name
_READ = r"{{%[^%]*(?<![\w.'\"]){}(?![\w'\"])"


@dataclass(frozen=True)
class Rendered:
    """One row of token ids: a prompt, and after `prompt_end` its response (where there is one)."""

    id: str
    group: str
    ids: tuple[int, ...]
    prompt_end: int

    @property
    def spans(self) -> RowSpans:
        return RowSpans(len(self.ids), self.prompt_end)

    def with_continuation(self, ids: Sequence[int]) -> "Rendered":
        return Rendered(self.id, self.group, (*self.ids, *ids), self.prompt_end)


def template_of(tokenizer: Any, chat_template: str | None = None) -> str | None:
    """The template that `render` will use: the explicit one, the tokenizer's own, or None.

    Args:
        chat_template: Jinja, or a name in `TEMPLATES`.
    """
    if chat_template is not None:
        return TEMPLATES.get(chat_template, chat_template)
    template = getattr(tokenizer, "chat_template", None)
    return template if isinstance(template, str) else None


def with_thinking(template: str | None, thinking: bool | None) -> str | None:
    """A template with its thinking mode switched on or off for good.

    The switch is the variable `enable_thinking` (or `thinking`) of the template, set before the
    template's own text.

    Args:
        thinking: None only for a template without such a switch, or one that was switched before.
            Templates differ in their default, and it decides whether an answer begins with pages of
            thought.

    Raises:
        InputError: a choice for a template that has none, or no choice for one that has.
    """
    if template is not None and (match := _WAS_SET.match(template)):
        if thinking is None:
            return template
        template = template[match.end() :]
    switch = _switch_of(template or "")
    if thinking is None:
        if switch is not None:
            raise InputError(
                f"the chat template has a thinking mode ({switch});"
                " pass thinking=True or thinking=False"
            )
        return template
    if switch is None or template is None:
        raise InputError(
            f"thinking={thinking!r} was passed,"
            " but the chat template has no thinking mode (no enable_thinking in it); leave it out"
        )
    return _SET.format(switch, str(thinking).lower()) + template


def _switch_of(template: str) -> str | None:
    """The variable by which a template switches thinking on and off."""
    for name in _SWITCHES:
        if re.search(_READ.format(name), template):
            return name
    return None


def split_thinking(text: str) -> tuple[str, str]:
    """(thought, answer) of what a thinking model wrote; the answer is empty without `</think>`."""
    thought, _, answer = text.partition("</think>")
    return thought.strip().removeprefix("<think>").strip(), answer.strip()


def render(
    prompts: Iterable[Prompt],
    tokenizer: Any,
    *,
    chat_template: str | None = None,
    max_length: int | None = None,
) -> list[Rendered]:
    """Token ids of each prompt, and of its response where it keeps one.

    Args:
        chat_template: used in place of the tokenizer's own.
        max_length: the model's context; a longer row is an error that names it, never a truncation.

    Raises:
        InputError: no prompt; a chat without a template, or one that its template refuses; a system
            turn that the template leaves out; a doubled beginning-of-sequence token; an empty row;
            a row longer than `max_length`; a template whose prompt is not a prefix of prompt and
            response.
    """
    rows = []
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise InputError(
                f"prompts holds a {type(prompt).__name__}; pass a PromptSet,"
                " or the .prompts() of questions or answers"
            )
        if prompt.messages is None:
            row = _render_text(prompt, tokenizer)
        else:
            row = _render_chat(prompt, tokenizer, template_of(tokenizer, chat_template))
        _check_row(row, tokenizer, max_length)
        rows.append(row)
    if not rows:
        raise InputError("prompts is empty; pass at least one prompt")
    return rows


def _check_row(row: Rendered, tokenizer: Any, max_length: int | None) -> None:
    label = f"prompt {one_line(row.id, 60)!r}"
    if not row.prompt_end:
        raise InputError(f"{label} renders to no token; pass text the tokenizer knows")
    bos = getattr(tokenizer, "bos_token_id", None)
    # a template may write the token that the tokenizer adds as well
    if bos is not None and row.ids[:2] == (bos, bos):
        raise InputError(
            f"{label} begins with two {tokenizer.bos_token!r} tokens;"
            " drop the one written in the text or the template"
        )
    if max_length is not None and len(row.ids) > max_length:
        raise InputError(
            f"{label} has {len(row.ids)} tokens, but the model's context is {max_length};"
            " shorten it"
        )


def _render_text(prompt: Prompt, tokenizer: Any) -> Rendered:
    """Raw text, tokenised as it is, and its response after it."""
    ids = tuple(tokenizer(prompt.text)["input_ids"])
    row = Rendered(prompt.id, prompt.group, ids, len(ids))
    if prompt.response is None:
        return row
    # without special tokens: a start token would be in the middle of the row
    return row.with_continuation(tokenizer(prompt.response, add_special_tokens=False)["input_ids"])


def _render_chat(prompt: Prompt, tokenizer: Any, template: str | None) -> Rendered:
    label = f"prompt {one_line(prompt.id, 60)!r}"
    if template is None:
        raise InputError(
            f"{label} is a chat, but the tokenizer has no chat template;"
            " pass chat_template=, or load the base model inside a family,"
            " which lends it the instruct model's"
        )
    chat = [message.to_record() for message in prompt.messages or ()]
    try:
        ids = _apply(tokenizer, chat, template, add_generation_prompt=True)
        if _drops_system(ids, tokenizer, chat, template):
            raise InputError("it leaves the system turn out")
        if prompt.response is None:
            return Rendered(prompt.id, prompt.group, ids, len(ids))
        chat.append({"role": "assistant", "content": prompt.response})
        ids_with_response = _apply(tokenizer, chat, template, add_generation_prompt=False)
    # a template raises what it likes, for instance where it knows no system turn
    except Exception as error:
        raise InputError(
            f"{label}: the chat template refuses it ({one_line(str(error), 160)})"
        ) from None
    if ids_with_response[: len(ids)] != ids or len(ids_with_response) == len(ids):
        raise InputError(
            f"{label}: the chat template renders prompt and answer so that the prompt is not a"
            " prefix of them; the answer's tokens cannot be distinguished"
        )
    return Rendered(prompt.id, prompt.group, ids_with_response, len(ids))


def _drops_system(
    ids: tuple[int, ...], tokenizer: Any, chat: list[dict[str, str]], template: str
) -> bool:
    """Whether there are system turns that make no difference to the ids."""
    without_system = [message for message in chat if message["role"] != "system"]
    if len(without_system) == len(chat):
        return False
    try:
        return _apply(tokenizer, without_system, template, add_generation_prompt=True) == ids
    except Exception:  # a template that wants a system turn does not drop it
        return False


def _apply(
    tokenizer: Any, chat: list[dict[str, str]], template: str, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    encoded = tokenizer.apply_chat_template(
        chat,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=add_generation_prompt,
    )
    return tuple(encoded["input_ids"])


def rendered_hash(rows: Sequence[Rendered]) -> str:
    """SHA-256 over ids and prompt boundaries, in order: what two runs must share to be paired."""
    lines = []
    for row in rows:
        token_ids = ",".join(map(str, row.ids))
        lines.append(f"{row.id}\x1f{row.prompt_end}\x1f{token_ids}")
    return sha256_text("\n".join(lines))
