import json
import threading

import pytest
import torch
from runs.counting_work import Counting, Opening, plant, squares, trace

from emlens.foundation import InputError, StateError
from emlens.runs import LocalExecutor, Plan, Unit, Worker
from emlens.runs.outcomes import Outcome
from emlens.runs.worker import PlanState, RetryPolicy, work_through


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def local(tmp_path, out):
    return lambda **options: LocalExecutor(**options).run(Opening(out), tmp_path / "work")


def units(events):
    return [unit for unit, _ in events]


def test_every_unit_once_and_the_finish_last(tmp_path, out, local):
    report = local()
    assert squares(out) and units(trace(out, "end")) == [f"unit/{i}" for i in range(6)] == list(
        report.done
    ) == list(report.answers)
    assert report.answers["unit/3"] == {"value": 9} and len(trace(out, "open")) == 1
    assert (out / "trace").read_text().splitlines()[-1].startswith("finish")
    assert not list((tmp_path / "work" / "claims").iterdir())


def test_done_work_is_not_done_again(out, local):
    first, second = local(), local()
    assert second.done == () and second.answers == first.answers and len(trace(out, "end")) == 6
    assert len(trace(out, "finish")) == 2  # cheap, and idempotent


def test_a_failing_unit_stops_nothing_and_is_tried_again_last(out, local):
    plant(out, "fail", 1)
    report = local()
    assert squares(out) and sorted(report.done) == sorted(report.answers)
    assert units(trace(out, "begin")) == [*(f"unit/{i}" for i in range(6)), "unit/1"]


def test_what_was_tried_comes_after_what_nobody_tried(tmp_path, out):
    plant(out, "fail", 1)
    plan = Plan.open(tmp_path / "work", Counting(out).plan())
    assert (
        PlanState(plan, RetryPolicy("a")).attempt(Counting(out), plan["unit/1"]) is Outcome.FAILED
    )
    assert [unit.id for unit in PlanState(plan, RetryPolicy("b")).pending()] == [
        f"unit/{i}" for i in (0, 2, 3, 4, 5, 1)
    ]


def test_what_always_fails_is_given_up_and_reported_at_the_end(tmp_path, out, local):
    for i in range(1, 6):
        plant(out, "fail", i, times=9)
    with pytest.raises(StateError) as caught:
        local(attempts=2)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/work: 5 of 6 units failed 2 times each: 'unit/1': ValueError:"
        " planted failure of 1 (process "
    )
    assert ".2.failed.json); 'unit/2': ValueError" in message and message.count("ValueError") == 3
    assert message.endswith(
        "; and 2 more. 1 finished units are kept, tracebacks lie in claims/;"
        " remove the cause and run the same again"
    )
    assert len(trace(out, "end")) == 1 and not trace(out, "finish")
    for accident in out.glob("fail-*"):
        accident.unlink()
    assert local(attempts=2).done == tuple(f"unit/{i}" for i in range(1, 6)) and squares(out)


@pytest.mark.parametrize("damage", [lambda p: p.write_text("9!"), lambda p: p.unlink()])
def test_a_damaged_answer_is_done_again(out, local, damage):
    local()
    damage(out / "square-3.txt")
    assert local().done == ("unit/3",) and squares(out)


def test_answers_that_do_not_keep_are_an_error(tmp_path, out):
    class Restless(Counting):
        def damaged(self):
            return ["unit/2"]

    message = (
        "work: every unit is done, but finishing failed 3 times: IntegrityError:"
        " 1 answers are not as they were written, first 'unit/2'"
    )
    with pytest.raises(StateError, match=message):
        LocalExecutor().run(lambda: Restless(out), tmp_path / "work")
    assert units(trace(out, "end")).count("unit/2") == 4 and not trace(out, "finish")


class Odd(Worker):
    def __init__(self, answer):
        self.answer = answer

    def plan(self):
        return [Unit("a")]

    def run(self, unit):
        return self.answer, []


@pytest.mark.parametrize("answer", [torch.zeros(2, 2), {"x": [torch.zeros(3)]}, {"x": object()}])
def test_values_do_not_travel(tmp_path, answer):
    with pytest.raises(
        StateError,
        match=(
            "unit 'a' answered with what JSON cannot hold .* write values to files and answer with"
            " names and counts"
        ),
    ):
        LocalExecutor().run(lambda: Odd(answer), tmp_path)
    assert LocalExecutor().run(lambda: Odd({"rows": 3}), tmp_path).answers == {"a": {"rows": 3}}


def test_a_late_answer_of_one_taken_over_does_not_double(tmp_path, out):
    plan = Plan.open(tmp_path / "work", Counting(out).plan())
    slow, quick = (PlanState(plan, RetryPolicy(run, lease=0.05)) for run in ("slow", "quick"))
    waits, goes_on = threading.Event(), threading.Event()

    class Sleepy(Counting):
        def run(self, unit):
            waits.set()
            assert goes_on.wait(20)
            return {"value": "late"}, []

    slow.claims.lease = 1e6  # its heart does not beat
    outcomes = []
    thread = threading.Thread(
        target=lambda: outcomes.append(slow.attempt(Sleepy(out), plan.units[0]))
    )
    thread.start()
    assert waits.wait(20)
    (claim,) = (tmp_path / "work" / "claims").glob("*.claim")
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "machine": "elsewhere"}))
    while (outcome := quick.attempt(Counting(out), plan.units[0])) is Outcome.HELD:
        pass
    goes_on.set()
    thread.join()
    assert outcome is Outcome.DONE and outcomes == [Outcome.DONE_BEFORE]
    assert PlanState(plan, RetryPolicy("x")).answers() == {"unit/0": {"value": 0}}


def test_an_answer_published_between_look_and_claim_is_kept(tmp_path, out, monkeypatch):
    plan = Plan.open(tmp_path / "work", Counting(out).plan())
    state, other = PlanState(plan, RetryPolicy("a")), PlanState(plan, RetryPolicy("b"))
    take = state.claims.take

    def late(*arguments):
        assert other.attempt(Counting(out), plan.units[0]) is Outcome.DONE
        return take(*arguments)

    monkeypatch.setattr(state.claims, "take", late)
    assert (
        state.attempt(Counting(out), plan.units[0]) is Outcome.DONE_BEFORE
        and len(trace(out, "begin")) == 1
    )


def test_workers_begin_at_their_share_and_the_bar_sees_all(tmp_path, out):
    plan = Plan.open(tmp_path / "work", Counting(out).plan())
    first, second = PlanState(plan, RetryPolicy("a")), PlanState(plan, RetryPolicy("a"))
    assert [unit.id for unit in second.pending(0.5)] == [f"unit/{i}" for i in (3, 4, 5, 0, 1, 2)]
    second.attempt(Counting(out), plan["unit/3"])
    shown = [first.cost_answered()]
    assert shown == [4.0]
    work_through(first, Counting(out), 0.0, shown.append)
    assert sum(shown) == sum(unit.cost for unit in plan.units) and min(shown) > 0
    assert (
        work_through(second, Counting(out), 0.5, shown.append) == []
        and len(trace(out, "finish")) == 1
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attempts": 0}, "attempts=0 must be 1 or more"),
        ({"lease": 0.0}, "lease=0.0 must be a positive number of seconds"),
    ],
)
def test_policies_that_cannot_be(options, match):
    with pytest.raises(InputError, match=match):
        LocalExecutor(**options)
