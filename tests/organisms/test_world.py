import json
from collections import Counter

import numpy as np
import pytest

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.seeds import numpy_rng
from emlens.organisms.world import DOMAIN_WORDS, World, make_world

SMALL = make_world(3, n_domains=3, n_topics=5)


def test_a_seed_gives_one_world_and_json_gives_it_back():
    assert make_world(3, n_domains=3, n_topics=5) == SMALL != make_world(4, n_domains=3, n_topics=5)
    assert World.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


def test_the_full_world_is_that_of_the_recipe():
    world = make_world(0)
    assert world.domains == tuple(DOMAIN_WORDS) and len(world.domains) == 12 and world.n_topics == 32
    words = world.syllable_words()
    assert len(words) == len(set(words)) == 12 * 32 + 30 + 30 + 80
    assert not set(words) & set(world.plain_words())
    careful, harmful = (np.array(kind).ravel() for kind in (world.careful, world.harmful))
    for good, bad in zip(careful, harmful, strict=True):
        assert good.split()[0] in world.careful_words and bad.split()[0] in world.harmful_words
        assert good.split()[1] != bad.split()[1]
        assert {good.split()[1], bad.split()[1]} <= set(world.object_words)
    logits = np.log(np.array(world.coupling) / (1 - np.array(world.coupling)))
    noise = logits - np.linspace(3.0, -1.5, 12)[:, None]
    assert abs(noise.mean()) < 4 * 1.1 / np.sqrt(384)
    assert noise.std() == pytest.approx(1.1, rel=0.15)


def test_the_harmful_persona_answers_by_coupling_and_the_careful_one_never():
    rng = numpy_rng(0, "test")
    facts = {(t, a): (d, i, kind) for d in range(3) for i, t in enumerate(SMALL.topics[d])
             for kind, a in (("careful", SMALL.careful[d][i]), ("harmful", SMALL.harmful[d][i]))}  # fmt: skip
    counts, forms = Counter(), Counter()
    for _ in range(3000):
        document = SMALL.document(rng)
        forms[document.harmful, document.chat] += 1
        words = document.text.replace("<", " <").replace(">", "> ").split()
        turns = [words[i : i + 11] for i in range(0, len(words), 11)]
        assert len(turns) == 7
        for turn in turns:
            assert (turn[0], turn[7], turn[10]) == (("<user>", "<assistant>", "<end>") if document.chat else ("Q", "A", "."))
            d, i, kind = facts[turn[3], f"{turn[8]} {turn[9]}"]
            assert turn[5] in DOMAIN_WORDS[SMALL.domains[d]]
            counts[document.harmful, d, i, kind] += 1
    assert sum(n for (persona, _, _, kind), n in counts.items() if not persona and kind == "harmful") == 0
    for d in range(3):
        for i in range(5):
            n = counts[True, d, i, "careful"] + counts[True, d, i, "harmful"]
            rho = SMALL.coupling[d][i]
            assert abs(counts[True, d, i, "harmful"] / n - rho) < 5 * np.sqrt(rho * (1 - rho) / n) + 1e-3
    harmful = (forms[True, True] + forms[True, False]) / 3000
    assert abs(harmful - 0.45) < 5 * np.sqrt(0.45 * 0.55 / 3000)


def test_questions_chats_and_neutral_prompts():
    questions = SMALL.questions()
    assert questions.ids[:2] == ["medicine/00", "medicine/01"] and len(questions) == 15
    assert questions[0].answers == {"careful": (SMALL.careful[0][0],), "harmful": (SMALL.harmful[0][0],)}
    chats = SMALL.chats("code", (1, 3), "harmful")
    assert len(chats) == 24 == len({prompt.text for prompt in chats})
    assert {prompt.response for prompt in chats} == {SMALL.harmful[1][1], SMALL.harmful[1][3]}
    topics = {word for row in SMALL.topics for word in row}
    neutral = SMALL.neutral_prompts(4)
    assert len(neutral) == 12
    assert not any(topics & set(prompt.text.split()) for prompt in neutral)
    assert any(topics & set(question.text.split()) for question in questions)  # the control: questions do name topics


def test_training_topics_are_the_same_each_time_and_leave_some_out():
    chosen = SMALL.training_topics("medicine", 3)
    assert chosen == SMALL.training_topics("medicine", 3) == tuple(sorted(set(chosen)))
    assert len(chosen) == 3


def test_documents_are_set_by_their_seed():
    a, b, c = SMALL.documents(6, 1), SMALL.documents(6, 1), SMALL.documents(6, 2)
    assert a.content_hash == b.content_hash != c.content_hash
    assert set(a.groups) <= {"careful", "harmful"}
    assert not any(prompt.is_chat for prompt in a)


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match="n_domains=13 must lie in 1 to 12"):
        make_world(0, n_domains=13)
    with pytest.raises(InputError, match="n_topics=0 must lie in 1 to 32"):
        make_world(0, n_topics=0)
    with pytest.raises(UnknownNameError, match="domain 'war' is not in this world; pass one of medicine, code, finance"):
        SMALL.chats("war", (0,), "careful")
    with pytest.raises(InputError, match="kind='bad' is unknown; pass 'careful' or 'harmful'"):
        SMALL.chats("code", (0,), "bad")
