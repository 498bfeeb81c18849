"""The miniature of `python -m benchmarks verdict_intervals`."""

from benchmarks import verdict_intervals


def test_intervals_over_domains_hold_where_those_over_questions_do_not() -> None:
    table = verdict_intervals.measure(40, 1, domains=(8,))
    assert (table["over_domains"] >= 0.85).all()
    assert (table["over_questions"] < 0.8).all()
    assert "| 8 | fall |" in verdict_intervals.coverage_table({"rows": table.to_dict("records")})
