import json
import math
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.telemetry import Calls, Counters, Quantiles, Rate

events = st.lists(
    st.sampled_from(["arrive", "arrive", "full", "mandatory", "shed", "again"]), max_size=60
)


def live(events):
    """Run a stream; return its counters, and what an independent tally of them says."""
    counters, waiting, tally, sequence = Counters(), 0, dict.fromkeys(("in", "out"), 0), 0
    for event in events:
        if event == "arrive":
            assert counters.arrived(sequence, float(sequence))
            sequence, waiting = sequence + 1, waiting + 1
            tally["in"] += 1
        elif event == "again" and sequence:
            assert not counters.arrived(sequence - 1, float(sequence - 1))
        elif waiting:
            waiting -= 1
            tally["out"] += 1
            if event == "shed":
                counters.give_up("queue_full")
            else:
                counters.answered(2 if event == "full" else -1, 0.001)
    return counters, waiting, tally


@given(events)
def test_received_is_always_full_and_mandatory_and_shed_and_in_flight(events):
    counters, waiting, tally = live(events)
    counters.check(waiting)
    assert counters.received == tally["in"]
    assert counters.full + counters.mandatory + sum(counters.shed.values()) == tally["out"]


@given(events)
def test_counters_survive_json_and_what_was_in_flight_is_shed_by_name(events):
    counters, waiting, _ = live(events)
    back = Counters.restore(json.loads(json.dumps(counters.snapshot(), allow_nan=False)))
    back.check(0)
    assert back.shed.get("restart", 0) == waiting
    assert back.received == counters.received
    assert back.levels == counters.levels
    assert (back.newest, back.seen) == (counters.newest, counters.seen)
    if counters.newest >= 0:
        assert not back.arrived(counters.newest, 0.0)  # it knows what it has seen


def test_a_lost_sample_breaks_the_identity():
    counters = Counters()
    counters.arrived(0, 0.0)
    with pytest.raises(AssertionError, match="lost or counted twice"):
        counters.check(waiting=0)
    counters.answered(0, 0.0)
    counters.answered(0, 0.0)
    with pytest.raises(AssertionError, match="lost or counted twice"):
        counters.check()


@given(st.lists(st.integers(0, 50), max_size=80))
def test_missing_and_duplicates_are_those_of_the_set_of_numbers(sequences):
    counters = Counters()
    new = [counters.arrived(n, float(n)) for n in sequences]
    # A number below the first ever seen is late, not missing: nothing said that it should come.
    first = sequences[0] if sequences else 0
    assert sum(new) == counters.received == len(set(sequences))
    assert counters.duplicates == len(sequences) - len(set(sequences))
    if sequences and min(sequences) == first:
        assert counters.missing == max(sequences) - first + 1 - len(set(sequences))


def test_a_sensor_that_counts_anew_is_told_from_an_old_sample_that_came_again():
    counters = Counters()
    for n in range(1000, 1100):
        counters.arrived(n, 10.0 + n)
    assert not counters.arrived(1001, 1011.0)
    assert counters.arrived(0, 2000.0)
    assert counters.arrived(1, 2001.0)
    assert (counters.restarts, counters.duplicates, counters.missing) == (1, 1, 0)


def test_a_long_gap_counts_every_missing_sample():
    counters = Counters()
    assert counters.arrived(5, 0.0)
    assert counters.arrived(5 + 10**6, 1.0)
    assert counters.missing == 10**6 - 1
    assert counters.seen == 1


def test_deadlines_levels_and_kinds_of_feedback_are_counted_apart():
    counters = Counters()
    for n, (level, slack) in enumerate([(3, 0.0), (3, -1e-9), (-1, 0.5)]):
        counters.arrived(n, float(n))
        counters.answered(level, slack)
    counters.heard("received")
    counters.heard("too_early_pending")
    counters.heard("too_early_pending", -1)
    counters.reject("malformed")
    assert (counters.met, counters.missed) == (2, 1)
    assert counters.levels == {3: 2, -1: 1}
    assert counters.feedback["received"] == 1
    assert counters.feedback["too_early_pending"] == 0
    assert counters.rejected == {"malformed": 1}
    with pytest.raises(ValueError, match="must be one of received, paired"):
        counters.heard("recieved")


def test_the_total_of_streams_adds_up():
    one, other = Counters(), Counters()
    for n in range(5):
        one.arrived(n, 0.0)
        one.answered(1, 0.1)
    other.arrived(7, 0.0)
    other.give_up("stale")
    whole = Counters()
    for counters in (one, other):
        whole.include(counters)
    whole.check(waiting=0)
    assert (whole.received, whole.full, whole.shed) == (6, 5, {"stale": 1})
    assert whole.levels == {1: 5}
    assert whole.newest == -1
    assert whole.in_time == 1.0
    assert one.shed == {}  # nothing of it was touched


@given(
    st.lists(st.floats(1e-6, 99.0), min_size=1, max_size=300),
    st.floats(0.0, 1.0),
)
def test_quantiles_are_within_the_width_of_a_bin_of_the_sorted_values(values, q):
    quantiles = Quantiles(ratio=1.04)
    for value in values:
        quantiles.add(value)
    exact = np.quantile(values, q, method="inverted_cdf")
    assert quantiles.quantile(q) == pytest.approx(exact, rel=math.sqrt(1.04) - 1 + 1e-6)


def test_values_outside_the_bins_are_counted_and_bounded_by_the_extremes():
    quantiles = Quantiles(low=1e-3, high=1.0)
    for value in (1e-9, 0.0, 5.0, 7.0, math.nan, math.inf):
        quantiles.add(value)
    assert quantiles.count == 6
    assert quantiles.quantile(0.01) == 0.0
    assert quantiles.quantile(1.0) == 7.0
    assert math.isnan(Quantiles().quantile(0.5))


def test_quantiles_of_two_parts_put_together_are_those_of_the_whole():
    values = np.random.default_rng(0).lognormal(-6.0, 1.0, 2000)
    whole, first, second = Quantiles(), Quantiles(), Quantiles()
    for n, value in enumerate(values.tolist()):
        whole.add(value)
        (first if n % 3 else second).add(value)
    first.restore(json.loads(json.dumps(second.snapshot(), allow_nan=False)))
    assert first.bins == whole.bins
    assert first.quantile(0.99) == whole.quantile(0.99)
    assert first.sum == pytest.approx(values.sum())
    with pytest.raises(ValueError, match="same low, high and ratio"):
        Quantiles(ratio=2.0).restore(whole.snapshot())


def test_a_rate_is_that_of_regular_events_from_early_on_and_fades_when_they_stop():
    rate = Rate(span=2.0)
    assert rate.at(0.0) == 0.0
    for n in range(1000):
        rate.add(0.01 * n)
        if n > 100:
            assert rate.at(0.01 * n) == pytest.approx(100.0, rel=0.02)
    assert rate.at(9.99 + 2.0) == pytest.approx(100.0 / math.e, rel=0.02)
    rate.add(3.0)  # a clock that runs backwards does no harm
    assert 0.0 < rate.at(9.99) < 110.0


def test_a_restored_rate_goes_on_under_another_clock():
    rate, other = Rate(), Rate()
    for n in range(500):
        rate.add(0.1 * n)
    other.restore(json.loads(json.dumps(rate.snapshot())), now=1e6)
    assert other.at(1e6) == pytest.approx(rate.at(0.1 * 499))


def test_calls_say_what_they_had_what_was_expected_and_what_they_took():
    calls = Calls()
    calls.add(2, True, 0.010, 0.004, 0.005)
    calls.add(2, True, 0.010, 0.004, 0.012)  # longer than there was
    calls.add(0, False, 0.002, 0.001, 0.003)  # a try
    calls.add(-1, False, inf, 0.002, 0.002)  # for no answer
    told = calls.snapshot()
    assert (told["sure"], told["longer"], told["levels"]) == (2, 1, {"-1": 1, "0": 1, "2": 2})
    assert told["slack_p50_ms"] == pytest.approx(10.0, rel=0.03)
    assert told["cost_to_expected_p50"] == pytest.approx(1.25, rel=0.03)
    assert told["cost_to_expected_p99"] == 3.0
    assert Calls().snapshot()["slack_p1_ms"] is None


def test_answers_that_came_late_are_told_by_whose_fault_it_was():
    counters = Counters()
    for sequence, (slack, published) in enumerate([(0.01, 0.02), (-0.01, 0.02), (-0.02, -0.01)]):
        counters.arrived(sequence, float(sequence))
        counters.answered(0, slack, published)
    assert counters.causes == {"sink": 1, "late": 1}
    assert Counters.restore(counters.snapshot()) == counters
