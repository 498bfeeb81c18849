"""An answer ends with its turn, whatever model runs on the template."""

import pytest
import torch
from parrot_models import hooked, parrot
from tokenizer_kinds import KINDS, Kind

from emlens.data import PromptSet
from emlens.data.templates import TEMPLATES
from emlens.models.answering import _ends
from emlens.models.hooked import HookedModel
from emlens.models.sampling import RowSampler
from emlens.models.stops import Stops, template_stops

CHATML = next(kind for kind in KINDS if kind.name == "base with another end of sequence")
PLAIN = next(kind for kind in KINDS if kind.name == "plain words with a start")
QUESTION = PromptSet.from_questions(["How many legs has a spider?"])


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_the_end_of_turn_of_every_template_is_found(kind: Kind):
    template = kind.tokenizer.chat_template or TEMPLATES["plain"]
    if isinstance(template, dict):
        template = template["default"]
    stops = template_stops(kind.tokenizer, template)
    if kind.end:
        assert stops == Stops(frozenset({kind.tokenizer.convert_tokens_to_ids(kind.end)}))
    else:
        assert stops == Stops(frozenset(), ("\n\nAssistant:", "\n\nSystem:", "\n\nUser:"))


def test_without_a_template_or_with_one_that_refuses_nothing_is_added():
    assert template_stops(CHATML.tokenizer, None) == Stops(frozenset())
    refusing = "{{ raise_exception('never') }}"
    assert template_stops(CHATML.tokenizer, refusing) == Stops(frozenset())
    hiding = "{% for m in messages %}x{% endfor %}"
    assert template_stops(CHATML.tokenizer, hiding) == Stops(frozenset())


def test_a_mark_that_the_tokenizer_does_not_know_ends_an_answer_as_text():
    lent = CHATML.template.replace("|im_", "|turn_")
    assert template_stops(CHATML.tokenizer, lent) == Stops(frozenset(), ("<|turn_end|>",))


CHATML_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
FIRST_IS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}"
ODD = {
    "always opened, ordinary mark": (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }}\n{% else %}"
        "ASSISTANT: {{ m['content'] }} [END]\n{% endif %}{% endfor %}ASSISTANT:",
        (),
        ("[END]",),
    ),
    "last answer left open": (
        "{% for m in messages %}"
        + CHATML_TURN.replace(
            "<|im_end|>\n",
            "{% if not (loop.last and m['role'] == 'assistant') %}<|im_end|>\n{% endif %}",
        )
        + "{% endfor %}"
        + OPENING,
        ("<|im_end|>",),
        (),
    ),
    "wants a system turn": (
        FIRST_IS_SYSTEM + "{% for m in messages %}" + CHATML_TURN + "{% endfor %}" + OPENING,
        ("<|im_end|>",),
        (),
    ),
    "wants a system turn, has no marks": (
        FIRST_IS_SYSTEM + TEMPLATES["plain"],
        (),
        ("\n\nAssistant:", "\n\nSystem:", "\n\nUser:"),
    ),
    "headers are marks, closing is none": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}"
        "{% else %}{{ '<think>\n\n</think>' if loop.last }}{{ m['content'] }}{% endif %}\n"
        "{% endfor %}",
        ("<|im_start|>",),
        (),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_templates_have_one_closing(name):
    template, marks, texts = ODD[name]
    tokenizer = CHATML.tokenizer
    tokens = frozenset(map(tokenizer.convert_tokens_to_ids, marks))
    assert template_stops(tokenizer, template) == Stops(tokens, texts)


def test_line_breaks_among_the_added_tokens_are_text():
    import copy

    tokenizer = copy.deepcopy(PLAIN.tokenizer)
    tokenizer.add_tokens(["\n\n"])
    assert tokenizer.convert_tokens_to_ids("\n\n") in tokenizer.added_tokens_decoder
    assert not template_stops(tokenizer, TEMPLATES["plain"]).ids


def test_a_text_is_cut_where_the_first_stop_begins():
    stops = Stops(frozenset(), ("\n\nUser:", "<x>"))
    for text, kept in [
        ("Eight.\n\nUser: and", "Eight."),
        ("a <x> b\n\nUser:", "a "),
        ("\n\nUser:", ""),
        ("no stop\n\nUse", "no stop\n\nUse"),
        ("", ""),
    ]:
        assert stops.cut(text) == kept
    assert Stops(frozenset({1})).cut("\n\nUser:") == "\n\nUser:"


def greedy(module, ids, n, ends):
    """A plain loop over whole passes; `ends` are the tokens that end an answer."""
    said = []
    for _ in range(n):
        with torch.no_grad():
            token = int(module(torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
        if token in ends:
            return said, "stop"
        said.append(token)
    return said, "length"


def scripted(kind, before, answer, after):
    """A parrot of this answer and what follows it, and the ids of a prompt."""
    tokenizer = kind.tokenizer
    said = tokenizer(answer + after, add_special_tokens=False)["input_ids"]
    model = hooked(tokenizer, parrot(tokenizer, [before, *said]), kind.chat_template)
    [row] = model.render(QUESTION)
    assert row.ids[-1] == before
    return model, row, said


def test_a_base_model_stops_at_the_end_of_turn_of_a_lent_template():
    tokenizer = CHATML.tokenizer
    newline = tokenizer("\n")["input_ids"][0]
    end, own_end = map(tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))
    assert own_end == tokenizer.eos_token_id != end
    model, row, said = scripted(CHATML, newline, "Yes.", "<|im_end|><|im_start|>user")
    assert model.stops.ids == {end, own_end}
    for stops, reason in [({own_end}, "length"), ({own_end, end}, "stop")]:
        tokens, ended = greedy(model.module, row.ids, len(said), stops)
        assert ended == reason
        # the control: by its own end of sequence alone it goes on into a turn of the user
        assert ("user" in tokenizer.decode(tokens)) == (reason == "length")
    [[(_, text, finish_reason)]] = model.generate_each(
        QUESTION, max_new_tokens=len(said), temperature=0
    )
    assert (text, finish_reason) == ("Yes.", "stop") and text == tokenizer.decode(tokens)
    # any of several ends stops it: that of the generation configuration comes first here
    model.module.generation_config.eos_token_id = [own_end, said[0]]
    [[(_, text, finish_reason)]] = model.generate_each(
        QUESTION, max_new_tokens=len(said), temperature=0
    )
    assert (text, finish_reason) == ("", "stop")


def test_a_template_without_marks_ends_an_answer_at_the_next_header():
    tokenizer = PLAIN.tokenizer
    colon = tokenizer(":", add_special_tokens=False)["input_ids"][-1]
    model, _, said = scripted(PLAIN, colon, " Yes.", "\n\nUser")
    assert model.stops.texts
    # before the header is whole nothing ends
    [text] = model.generate(QUESTION, max_new_tokens=len(said), temperature=0)
    assert text.startswith("Yes.") and "User" in text
    # the colon ends the header, and the scripted answer begins again after it
    model.module.lm_head.weight.data[colon] = model.module.model.embed_tokens.weight[said[-1]]
    [[(_, text, finish_reason)]] = model.generate_each(
        QUESTION, max_new_tokens=3 * len(said), temperature=0
    )
    assert (text, finish_reason) == ("Yes.", "stop")
    # raw text may hold such a header like any other text
    raw = PromptSet.from_texts(["It says:"])
    [[(_, text, finish_reason)]] = model.generate_each(
        raw, max_new_tokens=3 * len(said), temperature=0
    )
    assert text.count("User:") > 1 and finish_reason == "length"
    # a backend that generates batch by batch gives the same
    rows = model.render(QUESTION)
    sampler = RowSampler(0, ["p0"], 0)
    [[answer]] = HookedModel.decode(model, rows, sampler, 3 * len(said), 1, _ends(model, {0}))
    assert answer.finish_reason == "stop"
    assert model.stops.cut(tokenizer.decode(answer.tokens)).strip() == "Yes."
