import math

from emlens.foundation import Estimate


def test_an_estimate_is_a_number_with_an_interval() -> None:
    found = Estimate(0.1234, 0.1, 0.25, 24, "by hand")
    assert float(found) == 0.1234 and found.defined
    assert str(found) == "0.123 [0.1, 0.25]" and f"{found:.1%}" == "12.3% [10.0%, 25.0%]"
    assert found.to_record() == {
        "value": 0.1234,
        "low": 0.1,
        "high": 0.25,
        "n": 24,
        "method": "by hand",
    }


def test_what_is_undefined_says_why_and_never_shows_a_number() -> None:
    found = Estimate.undefined("no answer is scored", 3)
    assert not found.defined and str(found) == "undefined" and f"{found:.2f}" == "undefined"
    assert (
        found.method == "undefined: no answer is scored"
        and found.n == 3
        and math.isnan(float(found))
    )


def test_a_missing_interval_is_left_out() -> None:
    assert str(Estimate(0.5, math.nan, math.nan, 1, "one question")) == "0.5"
