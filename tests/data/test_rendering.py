from dataclasses import replace

import jinja2
import pytest
import tiny_models

from emlens.data import Prompt, PromptSet, QuestionSet
from emlens.data.questions import Question
from emlens.data.rendering import Rendered, render, rendered_hash
from emlens.data.templates import PLAIN_TEMPLATE, split_thinking, template_of, with_thinking
from emlens.foundation import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tokenizer()


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TRIMS = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] | trim }} <end> {% endfor %}"
HIDES = "{% for m in messages if m['role'] == 'user' %}<user> {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize(
    ("template", "answer", "message"),
    [
        (TRIMS, "", "its answer is empty"),
        (TRIMS, " \n", r"its answer is empty \(after the template trimmed it\)"),
        (HIDES, "w2", "leaves the answer out"),
    ],
)
def test_an_empty_answer_is_told_from_one_that_a_template_hides(
    tokenizer, template, answer, message
):
    prompt = Prompt("p", "w1", messages=PromptSet.from_questions(["w1"])[0].messages)
    with pytest.raises(InputError, match=message):
        render([replace(prompt, response=answer)], tokenizer, chat_template=template)


def test_a_tokenizer_that_cannot_be_remembered_renders_all_the_same(tokenizer):
    class Wrapper:
        __slots__ = ("inner",)

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, *args, **options):
            return self.inner(*args, **options)

    prompts = PromptSet.from_questions(["w1 w2"])
    assert render(prompts, Wrapper(tokenizer)) == render(prompts, tokenizer)


def words(tokenizer, row):
    return tokenizer.convert_ids_to_tokens(list(row.ids))


def test_chats_and_raw_texts(tokenizer):
    rows = render(PromptSet.from_questions(["w1 w2"], system="w0"), tokenizer)
    assert words(tokenizer, rows[0]) == [
        "<system>",
        "w0",
        "<end>",
        "<user>",
        "w1",
        "w2",
        "<end>",
        "<assistant>",
    ]
    assert rows[0].prompt_end == len(rows[0].ids)
    assert words(tokenizer, render(PromptSet.from_texts(["w1 w2"]), tokenizer)[0]) == ["w1", "w2"]


def test_a_kept_response_follows_the_rendered_prompt(tokenizer):
    kept = PromptSet.from_messages([chat("w1 w2", "w3 w4")], upto="all")
    row, bare = render(kept, tokenizer)[0], render(kept.without_responses(), tokenizer)[0]
    assert row.ids[: row.prompt_end] == bare.ids
    assert words(tokenizer, row)[row.prompt_end :] == ["w3", "w4", "<end>"]
    raw = render([Prompt("a", "w1 w2", response="w3")], tokenizer)[0]
    assert words(tokenizer, raw) == ["w1", "w2", "w3"] and raw.prompt_end == 2
    assert row.spans.part("response") == range(row.prompt_end, len(row.ids) - 1)
    assert row.spans.part("end_of_turn") == range(len(row.ids) - 1, len(row.ids))
    assert row.written == range(row.prompt_end, len(row.ids))


def test_continuations_keep_the_boundary():
    longer = Rendered("a", "g", (1, 2), 1).with_continuation([3])
    assert longer == Rendered("a", "g", (1, 2, 3), 1)


def test_an_explicit_template_goes_first(tokenizer):
    assert template_of(tokenizer) == tiny_models.TEMPLATE
    assert template_of(tokenizer, "{{ 'x' }}") == "{{ 'x' }}"
    with pytest.raises(
        InputError, match="chat_template='x' is neither Jinja nor a template's name; the names are"
    ):
        template_of(tokenizer, "x")
    assert template_of(object()) is None
    rows = render(
        PromptSet.from_questions(["w1"]),
        tokenizer,
        chat_template="{% for m in messages %}{{ m.content + ' w9' }}{% endfor %}",
    )
    assert words(tokenizer, rows[0]) == ["w1", "w9"]


def test_the_hash_sees_ids_order_and_boundary():
    a, b = Rendered("a", "", (1, 2), 1), Rendered("b", "", (3,), 1)
    assert rendered_hash([a, b]) == rendered_hash([Rendered("a", "other group", (1, 2), 1), b])
    others = [
        [b, a],
        [a],
        [Rendered("a", "", (1, 2), 2), b],
        [Rendered("a", "", (12,), 1), b],
        [Rendered("c", "", (1, 2), 1), b],
    ]
    assert len({rendered_hash(rows) for rows in [[a, b], *others]}) == len(others) + 1


class WithStart:
    """A tokenizer that opens every text with a beginning-of-sequence token."""

    bos_token, bos_token_id, chat_template = "<s>", 9, None

    def __call__(self, text, add_special_tokens=True):
        ids = [9 if word == "<s>" else 10 for word in text.split()]
        return {"input_ids": [9, *ids] if add_special_tokens else ids}


def test_a_start_comes_once(tokenizer):
    assert render(PromptSet.from_texts(["w1"]), WithStart())[0].ids == (9, 10)
    assert render(PromptSet.from_texts(["<s> w1"]), WithStart())[0].ids == (9, 10)
    with pytest.raises(
        InputError,
        match="prompt 'p0' begins with two '<s>' tokens; drop the one written in the text",
    ):
        render(PromptSet.from_texts(["<s> <s> w1"]), WithStart())


def test_what_cannot_be_rendered_is_named(tokenizer):
    questions = PromptSet.from_questions(["w1 w2"])
    with pytest.raises(InputError, match=r"prompts is empty; pass at least one prompt"):
        render([], tokenizer)
    with pytest.raises(
        InputError,
        match=r"prompts holds a Question; pass a PromptSet, or the \.prompts\(\) of questions",
    ):
        render(QuestionSet([Question("q", "w1")]), tokenizer)
    with pytest.raises(
        InputError, match="prompt 'p0' renders to no token; pass text the tokenizer knows"
    ):
        render(PromptSet.from_texts([" "]), tokenizer)
    with pytest.raises(InputError, match="prompt 'a' renders to no token"):
        render([Prompt("a", " ", response="w1")], tokenizer)
    with pytest.raises(
        InputError, match="prompt 'p0' has 5 tokens, but the model's context is 4; shorten it"
    ):
        render(questions, tokenizer, max_length=4)
    assert render(questions, tokenizer, max_length=5)
    with pytest.raises(
        InputError,
        match=r"prompt 'p0' is a chat, but the tokenizer has no chat template; pass chat_template=",
    ):
        render(questions, WithStart())
    with pytest.raises(
        InputError, match=r"prompt 'p0': the chat template refuses it \(no system turns\)"
    ):
        render(questions, tokenizer, chat_template="{{ raise_exception('no system turns') }}")


def test_a_prompt_that_is_no_prefix_of_its_answer(tokenizer):
    kept = PromptSet.from_messages([chat("w1 w2", "w3 w4")], upto="all")
    template = tiny_models.TEMPLATE.replace("'<assistant>'", "'<assistant> w9'")
    with pytest.raises(
        InputError,
        match=(
            r"prompt 'p0': the chat template refuses it \(it renders prompt and answer so that the"
            " prompt is not a prefix"
        ),
    ):
        render(kept, tokenizer, chat_template=template)


def test_a_template_that_drops_the_system_turn_is_refused(tokenizer):
    asked = PromptSet.from_questions(["w1"], system="w0")
    dropping = tiny_models.TEMPLATE.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    with pytest.raises(
        InputError,
        match=r"prompt 'p0': the chat template refuses it \(it leaves the system turn out\)",
    ):
        render(asked, tokenizer, chat_template=dropping)
    assert render(PromptSet.from_questions(["w1"]), tokenizer, chat_template=dropping)
    own = tiny_models.TEMPLATE.replace(
        "{% for m in messages %}", "<system> w9 {% for m in messages if m.role != 'system' %}"
    )
    # one of its own in place of the one given
    with pytest.raises(InputError, match="it leaves the system turn out"):
        render(asked, tokenizer, chat_template=own)
    wanting = (
        "{{ raise_exception('no system turn') if messages[0].role != 'system' }}"
        + tiny_models.TEMPLATE
    )
    assert words(tokenizer, render(asked, tokenizer, chat_template=wanting)[0])[:2] == [
        "<system>",
        "w0",
    ]


def test_a_plain_rendering_by_name(tokenizer):
    kept = PromptSet.from_messages(
        [[{"role": "system", "content": "w0"}, *chat("w1 w2", "w3")]], upto="all"
    )
    row = render(kept, tokenizer, chat_template="plain")[0]
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "w0"}, *chat("w1 w2", "w3")],
        chat_template=PLAIN_TEMPLATE,
        tokenize=False,
    )
    assert text == "System: w0\n\nUser: w1 w2\n\nAssistant: w3\n\n"
    assert row.ids == tuple(tokenizer(text)["input_ids"]) and words(tokenizer, row)[
        row.prompt_end :
    ] == ["w3"]
    assert template_of(tokenizer, "plain") == PLAIN_TEMPLATE


SWITCHED = (
    "{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}"
)


def shown(template: str | None) -> str:
    # as transformers renders
    return (
        jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(str(template)).render()
    )


def test_a_thinking_mode_is_switched_inside_the_template() -> None:
    assert [
        shown(SWITCHED),
        shown(with_thinking(SWITCHED, True)),
        shown(with_thinking(SWITCHED, False)),
    ] == ["on", "on", "off"]
    twice = with_thinking(with_thinking(SWITCHED, False), True)
    assert twice == with_thinking(SWITCHED, True) and with_thinking(twice, None) == twice
    # the first line break stays
    assert shown(with_thinking("\nx{% if thinking %}y{% endif %}", True)) == "\nxy"


@pytest.mark.parametrize(
    "template",
    [
        None,
        "plain",
        "{{ message['thinking'] }}{% if message.thinking %}{% endif %} enable_thinking",
    ],
)
def test_a_template_without_a_switch_is_left_alone_and_takes_no_choice(
    template: str | None,
) -> None:
    assert with_thinking(template, None) == template
    with pytest.raises(
        InputError,
        match=(
            r"thinking=False was passed, but the chat template has no thinking mode \(no"
            r" enable_thinking in it\)"
        ),
    ):
        with_thinking(template, False)


def test_a_template_with_a_switch_needs_a_choice() -> None:
    with pytest.raises(
        InputError,
        match=r"has a thinking mode \(enable_thinking\); pass thinking=True, thinking=False or",
    ):
        with_thinking(SWITCHED, None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na b\n</think>\n\nc", ("a b", "c")),
        ("a</think>b", ("a", "b")),
        ("<think>a", ("a", "")),
        ("a</think>b</think>c", ("a", "b</think>c")),
    ],
)
def test_thought_and_answer(text: str, parts: tuple[str, str]) -> None:
    assert split_thinking(text) == parts


@pytest.mark.parametrize(
    ("opened", "text", "parts"),
    [
        (False, "hm</think>yes", ("", "hm</think>yes")),
        (None, "hm</think>yes", ("hm", "yes")),
        (None, "<think>hm</think>yes", ("hm", "yes")),
        (None, "what <think> and </think> do", ("", "what <think> and </think> do")),
        (None, "yes", ("", "yes")),
        (False, "<think>hm", ("hm", "")),
        (True, "hm", ("hm", "")),
    ],
)
def test_a_thought_is_split_off_where_there_is_one(opened, text, parts):
    assert split_thinking(text, opened=opened) == parts
