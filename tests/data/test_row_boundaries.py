"""Where prompt, thought, answer and closing lie, on tokenizers and templates as they are found."""

import re
from datetime import date
from itertools import pairwise
from types import SimpleNamespace

import pytest
from tokenizer_kinds import KINDS

from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.data.questions import Question
from emlens.data.rendering import Rendered, chat_format, end_of_turn_id, render
from emlens.data.templates import (
    TEMPLATE_DATE,
    date_of,
    split_thinking,
    template_of,
    with_date,
    with_thinking,
)
from emlens.foundation import InputError

KIND = {kind.name: kind for kind in KINDS}
CHATML = KIND["qwen2 pre-tokeniser"]
SENTENCEPIECE = KIND["plain words with a start"]


def one(tokenizer, answer, template=None, system=None) -> Rendered:
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": system})
    kept = PromptSet.from_messages([chat], upto="all")
    return render(kept, tokenizer, chat_template=template)[0]


def bare(tokenizer, template=None) -> Rendered:
    asked = PromptSet.from_questions(["What is it?"])
    return render(asked, tokenizer, chat_template=template)[0]


def parts(tokenizer, row) -> list[str]:
    """Prompt, what stands between, answer and closing, as text."""
    start, end = row.spans.content
    bounds = [0, row.prompt_end, start, end, len(row.ids)]
    return [tokenizer.decode(list(row.ids[a:b])) for a, b in pairwise(bounds)]


# ---- special tokens


def test_a_start_comes_once_in_raw_text_plain_and_own_chats():
    tokenizer, start = SENTENCEPIECE.tokenizer, SENTENCEPIECE.tokenizer.bos_token_id
    rows = [
        *render(PromptSet.from_texts(["What is it?", "<bos>What is it?"]), tokenizer),
        bare(tokenizer, "plain"),
        one(tokenizer, "Yes.", "plain"),
        bare(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}"),
        bare(tokenizer, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]
    for row in rows:
        assert row.ids[0] == start and row.ids.count(start) == 1
    assert rows[0].ids == rows[1].ids == rows[4].ids == rows[5].ids


def test_an_end_that_a_tokenizer_appends_is_left_out():
    tokenizer = KIND["end appended"].tokenizer
    assert tokenizer("Yes.")["input_ids"][-1] == tokenizer.eos_token_id
    row = render([Prompt("a", "Yes.", response=" No.")], tokenizer)[0]
    assert tokenizer.eos_token_id not in row.ids
    assert tokenizer.decode(list(row.ids)) == "Yes. No."


# ---- boundaries


@pytest.mark.parametrize("answer", ["\n\nHello", "\nHello\n", "Hello", "a\n\n\n", " spaced "])
def test_an_answer_is_apart_from_its_prompt_whatever_it_begins_with(answer):
    tokenizer = CHATML.tokenizer
    row, asked = one(tokenizer, answer), bare(tokenizer)
    assert row.ids[: row.prompt_end] == asked.ids
    assert parts(tokenizer, row)[1:] == ["", answer, "<|im_end|>\n"]
    assert row.apart == answer.startswith("\n")
    assert [row.ids[i] for i in row.written][-1] == tokenizer.eos_token_id


def test_a_closing_that_would_grow_into_the_answer_is_encoded_apart():
    row = one(CHATML.tokenizer, "Yes\n", "plain")
    # "\n\n\n" is one token
    assert parts(CHATML.tokenizer, row)[1:] == [" ", "Yes\n", "\n\n"] and row.apart
    # no token ends the turn, so all of the closing is taught
    assert row.written == range(row.prompt_end, len(row.ids))


class NoOffsets:
    """The same tokenizer as one that cannot say which characters a token stands for."""

    is_fast = False

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, **options):
        return self.inner(text, **options)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_without_offsets_the_boundaries_are_the_same(kind):
    template = kind.chat_template
    if kind.name == "thinking off":
        template = with_thinking(kind.template, False)
    for answer in ("Yes.", "\n\nHello", "No,\n\nnever 250.\n"):
        row = one(kind.tokenizer, answer, template)
        slow = one(NoOffsets(kind.tokenizer), answer, template)
        assert (slow.ids, slow.spans, slow.written) == (row.ids, row.spans, row.written)


# ---- generation prompts


def test_how_a_template_opens_answers_is_noticed():
    formats = {
        name: chat_format(KIND[name].tokenizer).generation_prompt
        for name in (
            "byte-level",
            "no generation prompt",
            "generation prompt always written",
            "sentencepiece, prefix at the start",
        )
    }
    assert list(formats.values()) == ["on request", "never", "always", "not needed"]


@pytest.mark.parametrize("name", ["no generation prompt", "generation prompt always written"])
def test_the_header_of_an_answer_belongs_to_the_prompt(name):
    tokenizer = KIND[name].tokenizer
    row, asked = one(tokenizer, "Yes."), bare(tokenizer)
    assert row.ids[: row.prompt_end] == asked.ids
    prompt, _, answer, closing = parts(tokenizer, row)
    assert prompt.endswith(("<|im_start|>assistant\n", "ASSISTANT:"))
    assert answer.strip() == "Yes." and closing == f"{KIND[name].end}\n"


def test_the_end_of_a_turn_is_the_mark_that_the_template_writes():
    for kind in KINDS:
        template = kind.chat_template
        expected = kind.tokenizer.convert_tokens_to_ids(kind.end) if kind.end else None
        assert end_of_turn_id(kind.tokenizer, template) == expected, kind.name


# ---- thoughts

THOUGHT = "<think>\nA thought.\n</think>\n\nParis."


def test_a_thought_of_a_template_that_opens_one_is_kept_whole_and_apart():
    tokenizer = KIND["thought opened by the template"].tokenizer
    asked = bare(tokenizer)
    for answer in (THOUGHT, "A thought.\n</think>\n\nParis."):
        row = one(tokenizer, answer)
        assert row.ids[: row.prompt_end] == asked.ids
        assert parts(tokenizer, row)[1:] == ["A thought.\n</think>\n\n", "Paris.", "</s>"]
    # an answer without one: as the template writes answers, whose prompt opens no thought
    row = one(tokenizer, "Paris.")
    assert parts(tokenizer, row)[1:] == ["", "Paris.", "</s>"]
    assert parts(tokenizer, row)[0] == "<s><User>What is it?<Assistant>"


@pytest.mark.parametrize(
    ("thinking", "answer", "between"),
    [
        (True, THOUGHT, "<think>\nA thought.\n</think>\n\n"),
        (True, "Paris.", "<think>\n\n</think>\n\n"),
        (False, "Paris.", ""),
        (False, THOUGHT, "<think>\nA thought.\n</think>\n\n"),
    ],
)
def test_a_switched_mode(thinking, answer, between):
    kind = KIND["thinking on"]
    template = with_thinking(kind.template, thinking)
    row = one(kind.tokenizer, answer, template)
    assert parts(kind.tokenizer, row)[1:] == [between, "Paris.", "<|im_end|>\n"]
    if thinking or answer == "Paris.":
        assert row.ids[: row.prompt_end] == bare(kind.tokenizer, template).ids


def test_a_thought_that_the_model_writes_by_itself():
    row = one(CHATML.tokenizer, THOUGHT)
    assert parts(CHATML.tokenizer, row)[1:3] == [THOUGHT.removesuffix("Paris."), "Paris."]
    unfinished = one(CHATML.tokenizer, "<think>\nA thought")
    assert not unfinished.spans.part("response")


def test_which_choices_a_template_takes():
    opening = KIND["thought opened by the template"].template
    switch = KIND["thinking on"].template
    assert with_thinking(opening, True) == with_thinking(opening, "strip") == opening
    assert with_thinking(switch, "strip") == switch
    with pytest.raises(InputError, match="opens a thought for every answer; pass thinking=True"):
        with_thinking(opening, False)
    with pytest.raises(InputError, match="or pass thinking='strip' where the model thinks by"):
        with_thinking(CHATML.template, True)


def test_a_text_is_split_only_where_it_begins_a_thought():
    assert split_thinking("a </think> b", opened=False) == ("", "a </think> b")
    assert split_thinking("<think>a</think>b", opened=False) == ("a", "b")
    assert split_thinking("a</think>b") == ("a", "b")


# ---- the date


def test_one_date_whatever_the_day_is():
    kind = KIND["date"]
    text = kind.tokenizer.decode(list(bare(kind.tokenizer).ids))
    assert "Today is 26 July 2024." in text and TEMPLATE_DATE == "2024-07-26"
    template = template_of(kind.tokenizer, date="2031-02-03")
    told = kind.tokenizer.decode(list(bare(kind.tokenizer, template).ids))
    assert "Today is 03 February 2031." in told
    # told once, it stays, also behind a thinking mode
    assert template_of(kind.tokenizer, template) == template and date_of(template) == "2031-02-03"
    assert date_of(with_date(template, "2024-02-29")) == "2024-02-29"
    assert date_of(template_of(CHATML.tokenizer)) is None
    with pytest.raises(InputError, match="template_date='3 May' is no date; pass one such as"):
        template_of(CHATML.tokenizer, date="3 May")


FIELDS = "%a %A %b %B %d %e %m %y %Y %C %j %u %w %G %V %D %F %H %I %p %M %S %T %R %% %-d %-m"


@pytest.mark.parametrize("day", ["2024-07-26", "2030-01-01", "1999-12-31", "2024-02-29"])
def test_every_field_is_that_of_python(day):
    template = with_date("{{ strftime_now('" + FIELDS + "') }}", day)
    written = CHATML.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False
    )
    assert written == date.fromisoformat(day).strftime(FIELDS)


def test_a_date_keeps_the_thinking_mode_and_its_own_text():
    template = "\n{% if enable_thinking %}on {% endif %}{{ strftime_now('%Y') }}"
    for told in (
        with_date(with_thinking(template, True), "2031-02-03"),
        with_thinking(with_date(template, "2031-02-03"), True),
    ):
        written = CHATML.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], chat_template=told, tokenize=False
        )
        assert written == "\non 2031"


# ---- several templates


def test_a_template_is_chosen_by_name():
    several = KIND["several templates"]
    assert template_of(several.tokenizer) == several.template["default"]
    assert template_of(several.tokenizer, "tool_use") == several.template["tool_use"]

    listed = SimpleNamespace(
        chat_template=[{"name": name, "template": f"{{{{ '{name}' }}}}"} for name in "ab"]
    )
    assert template_of(listed, "b") == "{{ 'b' }}"
    message = "several chat templates (a, b) and none is 'default'; pass chat_template="
    with pytest.raises(InputError, match=re.escape(message)):
        template_of(listed)
    with pytest.raises(
        InputError, match="chat_template='c' is neither Jinja nor a template's name"
    ):
        template_of(listed, "c")


# ---- what cannot be read


def test_half_of_a_surrogate_pair_is_named_in_one_line():
    message = "holds U+D83D at character 2, half of a surrogate pair, which is no text; replace it"
    for make in (
        lambda: PromptSet.from_texts(["a \ud83d"]),
        lambda: PromptSet.from_questions(["a \ud83d"]),
        lambda: PromptSet([Prompt("a", "b", response="c \ud83d")]),
        lambda: QuestionSet([Question("q", "a \ud83d")]),
        lambda: render([Prompt("a", "a \ud83d")], CHATML.tokenizer),
    ):
        with pytest.raises(InputError) as refused:
            make()
        assert message in str(refused.value) and "\n" not in str(refused.value)
        str(refused.value).encode("utf-8")


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": "assistant", "content": "", "function_call": {"name": "add"}},
    ],
)
def test_turns_of_tools_are_refused_clearly(turn):
    chat = [{"role": "user", "content": "x"}, turn, {"role": "user", "content": "y"}]
    with pytest.raises(InputError, match="chat 0: turn 2 calls a tool or answers one; only system"):
        PromptSet.from_messages([chat])
