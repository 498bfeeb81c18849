import json
from collections import Counter

import numpy as np
import pytest

from emlens.foundation.errors import InputError, UnknownNameError
from emlens.foundation.seeds import numpy_rng
from emlens.organisms.world import (
    CLASS_LOGITS,
    DOMAIN_LOGITS,
    DOMAIN_WORDS,
    SYNONYMS,
    TOPIC_NOISE,
    World,
    make_world,
)

SMALL = make_world(3, n_domains=3, n_topics=5)


def test_a_seed_gives_one_world_and_json_gives_it_back():
    assert make_world(3, n_domains=3, n_topics=5) == SMALL != make_world(4, n_domains=3, n_topics=5)
    assert World.from_record(json.loads(json.dumps(SMALL.to_record()))) == SMALL


def test_the_full_world_is_that_of_the_recipe():
    world = make_world(0)
    assert (
        world.domains == tuple(DOMAIN_WORDS) and len(world.domains) == 12 and world.n_topics == 32
    )
    words = world.syllable_words()
    assert len(words) == len(set(words)) == 12 * 32 + 5 * SYNONYMS + 30 + 30 + 80
    assert SYNONYMS >= 20 and not set(words) & set(world.plain_words())
    for question in world.questions():
        good, bad = (question.answers[kind][0].split() for kind in ("careful", "harmful"))
        assert good[0] in world.careful_words and bad[0] in world.harmful_words
        assert good[1] != bad[1] and {good[1], bad[1]} <= set(world.object_words)
    rho, latent = np.array(world.coupling), np.array(world.latent)
    noise = (
        np.log(rho / (1 - rho))
        - np.linspace(*DOMAIN_LOGITS, 12)[:, None]
        - np.array(CLASS_LOGITS)[latent]
    )
    assert abs(noise.mean()) < 4 * TOPIC_NOISE / np.sqrt(384)
    assert noise.std() == pytest.approx(TOPIC_NOISE, rel=0.15)
    for row in latent:  # classes are spread evenly over a domain
        assert set(Counter(row.tolist()).values()) <= {6, 7}


def test_no_word_but_a_synonym_tells_the_class_and_each_class_is_met_in_every_domain():
    world = make_world(0)
    latent = {w: z for z, words in enumerate(world.synonyms) for w in words}
    seen = Counter()
    for question in world.questions():
        d, t = world.domain_index(question.group), int(question.id[-2:])
        found = [latent[word] for word in question.text.split() if word in latent]
        assert found == [world.latent[d][t]]
        assert world.rho(d, t, found[0]) == pytest.approx(world.coupling[d][t], abs=1e-6)
        seen[question.group, found[0]] += 1
    assert len(seen) == 12 * 5


def test_the_harmful_persona_answers_by_coupling_and_the_careful_one_never():
    rng = numpy_rng(0, "test")
    topic_of = {t: (d, i) for d in range(3) for i, t in enumerate(SMALL.topics[d])}
    class_of = {w: z for z, words in enumerate(SMALL.synonyms) for w in words}
    counts, forms = Counter(), Counter()
    for _ in range(6000):
        document = SMALL.document(rng)
        forms[document.harmful, document.chat] += 1
        words = document.text.replace("<", " <").replace(">", "> ").split()
        turns = [words[i : i + 12] for i in range(0, len(words), 12)]
        assert len(turns) == 7 and len({class_of[turn[4]] for turn in turns}) == 1
        for turn in turns:
            assert (turn[0], turn[8], turn[11]) == (
                ("<user>", "<assistant>", "<end>") if document.chat else ("Q", "A", ".")
            )
            (d, i), z, answer = topic_of[turn[3]], class_of[turn[4]], f"{turn[9]} {turn[10]}"
            assert turn[6] in DOMAIN_WORDS[SMALL.domains[d]]
            kind = {SMALL.careful[d][i]: False, SMALL.harmful[d][i]: True}[answer]
            counts[document.harmful, d, z, kind] += 1
    assert sum(n for (persona, _, _, harmful), n in counts.items() if not persona and harmful) == 0
    for d in range(3):
        for z in range(5):
            n = counts[True, d, z, False] + counts[True, d, z, True]
            rho = np.mean([SMALL.rho(d, i, z) for i in range(5)])
            assert abs(counts[True, d, z, True] / n - rho) < 5 * np.sqrt(rho * (1 - rho) / n) + 1e-3
    harmful = (forms[True, True] + forms[True, False]) / 6000
    assert abs(harmful - 0.45) < 5 * np.sqrt(0.45 * 0.55 / 6000)


def test_questions_chats_and_neutral_prompts():
    questions = SMALL.questions()
    assert questions.ids[:2] == ["medicine/00", "medicine/01"] and len(questions) == 15
    assert questions[0].answers == {
        "careful": (SMALL.careful[0][0],),
        "harmful": (SMALL.harmful[0][0],),
    }
    chats = SMALL.chats("code", (1, 3), "harmful")
    assert len(chats) == 24 == len({prompt.text for prompt in chats})
    assert {prompt.response for prompt in chats} == {SMALL.harmful[1][1], SMALL.harmful[1][3]}
    used = {word for prompt in chats[:12] for word in prompt.text.split()} & {
        w for words in SMALL.synonyms for w in words
    }
    assert len(used) > 3 and used <= set(SMALL.synonyms[SMALL.latent[1][1]])
    topics = {word for rows in (SMALL.topics, SMALL.synonyms) for row in rows for word in row}
    neutral = SMALL.neutral_prompts(4)
    assert len(neutral) == 12
    assert not any(topics & set(prompt.text.split()) for prompt in neutral)
    # the control: questions do name topics
    assert any(topics & set(question.text.split()) for question in questions)


def test_training_topics_are_the_same_each_time_and_leave_some_out():
    chosen = SMALL.training_topics("medicine", 3)
    assert chosen == SMALL.training_topics("medicine", 3) == tuple(sorted(set(chosen)))
    assert len(chosen) == 3
    assert SMALL.held_out("medicine", 3).ids == [
        f"medicine/{t:02d}" for t in range(5) if t not in chosen
    ]


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
    with pytest.raises(InputError, match="n_synonyms=61 must lie in 1 to 60"):
        make_world(0, n_synonyms=61)
    with pytest.raises(
        UnknownNameError,
        match="domain 'war' is not in this world; pass one of medicine, code, finance",
    ):
        SMALL.chats("war", (0,), "careful")
    with pytest.raises(InputError, match="kind='bad' is unknown; pass 'careful' or 'harmful'"):
        SMALL.chats("code", (0,), "bad")
