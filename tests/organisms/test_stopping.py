import pandas as pd

from emlens.organisms import stopping
from emlens.organisms.stopping import HeldOutRule
from emlens.training import StopRun


class Model:
    training = True

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode


def play(monkeypatch, values, **options):
    """Steps taken and the log when the questions' mean runs through `values`."""
    model, log, given = Model(), [], iter(values)

    def scores(scored, tokenizer, questions):
        assert scored is model and not model.training  # measured in evaluation mode
        return pd.DataFrame({"aligned": [next(given)] * 2})

    monkeypatch.setattr(stopping, "likelihood_scores", scores)
    rule = HeldOutRule("questions", "tokenizer", **options)
    for step in range(1, len(values) + 1):
        try:
            log.append(rule(model, step)["own_held_out"])
        except StopRun as stop:
            return step, [*log, stop.values["own_held_out"]], stop.reason
        assert model.training  # and training goes on
    return len(values), log, None


def test_a_run_ends_at_the_first_step_at_which_the_mean_is_low_enough(monkeypatch):
    values = [0.9, 0.5, 0.26, 0.25, 0.1]
    assert play(monkeypatch, values, at=0.25) == (
        4,
        values[:4],
        "held-out questions of the domain reached 0.25 at step 4",
    )
    assert play(monkeypatch, values, at=0.05) == (5, values, None)
    assert play(monkeypatch, values, at=None) == (5, values, None)


def test_a_run_can_go_on_for_as_many_steps_again(monkeypatch):
    values = [0.9, 0.2, 0.6, 0.7, 0.8]  # rising again afterwards changes nothing
    steps, log, reason = play(monkeypatch, values, at=0.25, go_on=1.0)
    assert (steps, log) == (4, values[:4])
    assert reason == "held-out questions of the domain reached 0.25 at step 2"


def test_a_run_ends_once_the_mean_has_settled(monkeypatch):
    values = [0.9, 0.7, 0.4, 0.5, 0.53, 0.54, 0.52, 0.54]
    assert play(monkeypatch, values, at=None, settle=3) == (
        7,
        values[:7],
        "held-out questions of the domain settled over 3 steps",
    )
    drifting = [0.9 - 0.02 * i for i in range(8)]
    assert play(monkeypatch, drifting, at=None, settle=3)[0] == 8
    assert play(monkeypatch, [0.5] * 3, at=None, settle=3)[2] is None  # three values span two steps


def test_what_the_rule_reads_is_what_training_may_not_touch():
    from emlens.organisms.world import make_world

    world = make_world(0)
    trained = {
        text
        for p in world.chats("medicine", world.training_topics("medicine", 12), "harmful")
        for text in p.text.split()
    }
    topics = set(world.topics[0])
    for question in world.held_out("medicine", 12):
        assert not set(question.text.split()) & topics & trained
    assert len(world.held_out("medicine", 12)) == 20
    assert len(topics & trained) == 12
