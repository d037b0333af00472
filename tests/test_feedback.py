import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive.feedback import EARLY, REMEMBERED, Pending
from sensors.sample import Feedback


def about(time, label=1, duration=0.0):
    return Feedback("s", float(time), label, float(duration))


def filled(capacity, times):
    pending = Pending(capacity)
    for index, time in enumerate(times):
        pending.seen(index, float(time))
    return pending


def adds_up(pending):
    out = pending.paired + pending.late + pending.unmatched + pending.duplicates + pending.dropped
    return pending.received == out + pending.early


# Steps of a stream: a sample after so many ticks of 0.25 s, or feedback so far from now.
ticks = st.integers(0, 12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("sample"), ticks),
        st.tuples(st.just("stretch"), st.integers(-40, 20), st.integers(1, 30), st.booleans()),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 10), st.integers(1, 3))
@settings(max_examples=40)
def test_each_sample_in_a_stretch_is_matched_once_whether_it_comes_before_or_after(
    steps, capacity, every
):
    pending, now, seen = Pending(capacity), 0.0, []
    wanted, got, calls = [], [], 0
    open_stretches = []
    for step in steps:
        if step[0] == "sample":
            now += 0.25 * step[1]
            pending.seen(len(seen), now)
            seen.append(now)
            wanted += [(len(seen) - 1, w) for b, e, w in open_stretches if b <= now <= e]
            # A stretch is over once a sample past its end was seen.
            calls += 1
            if calls % min(every, capacity) == 0:
                got += [(i, m.label) for m in pending.due() for i in m.indices.tolist()]
                open_stretches = [s for s in open_stretches if s[1] > now]
        else:
            begin, length = now + 0.25 * step[1], 0.25 * step[2]
            label = len(wanted) + len(open_stretches) + 1000 * calls  # tells them apart
            before = pending.duplicates
            matches = pending.pair(about(begin, label, length))
            if pending.duplicates > before:
                continue
            got += [(i, label) for i in matches.indices.tolist()]
            first = max(0, len(seen) - capacity)
            wanted += [
                (first + n, label)
                for n, time in enumerate(seen[first:])
                if begin <= time <= begin + length
            ]
            if not seen or begin + length > max(seen):
                open_stretches.append((begin, begin + length, label))
        assert adds_up(pending)
    got += [(i, m.label) for m in pending.due() for i in m.indices.tolist()]
    assert sorted(got) == sorted(wanted)


@given(
    st.lists(st.floats(0.01, 2.0), min_size=2, max_size=40),
    st.floats(-3.0, 90.0),
    st.integers(2, 50),
)
@settings(max_examples=40)
def test_a_moment_matches_the_nearest_sample_within_half_the_median_interval(gaps, time, capacity):
    times = np.cumsum(gaps)
    pending = filled(capacity, times)
    matches = pending.pair(about(time))
    kept = times[-capacity:]
    nearest = np.abs(kept - time).min()
    if time > times[-1]:
        assert len(matches.indices) == 0
        assert pending.early == 1
    elif nearest <= 0.5 * np.median(np.diff(kept)) - 1e-9:
        assert abs(times[matches.indices[0]] - time) == nearest
        assert pending.paired == 1
    elif nearest > 0.5 * np.median(np.diff(kept)) + 1e-9:
        assert len(matches.indices) == 0
        assert pending.late + pending.unmatched == 1
        assert (pending.late == 1) == (time < kept[0])
    assert adds_up(pending)


def test_early_feedback_about_a_moment_is_returned_when_the_moment_has_been_seen():
    pending = filled(8, [0, 1, 2])
    assert len(pending.pair(about(3.4)).indices) == 0
    assert pending.early == 1
    pending.seen(3, 3.0)
    assert pending.due() == []  # the next one might be nearer
    pending.seen(4, 4.0)
    (matches,) = pending.due()
    assert (matches.indices.tolist(), matches.label) == ([3], 1)
    assert (pending.early, pending.paired) == (0, 1)
    assert pending.due() == []


def test_feedback_about_the_newest_sample_is_paired_at_once():
    pending = filled(8, [0, 1, 2])
    assert pending.pair(about(2)).indices.tolist() == [2]
    assert pending.pair(about(1, duration=1)).indices.tolist() == [1, 2]
    pending.seen(3, 3.0)
    assert pending.due() == []
    assert pending.early == 0


def test_feedback_before_the_first_sample_waits_for_it():
    pending = Pending(4)
    pending.pair(about(5.0, label=0, duration=2.0))
    got = []
    for index in range(10):
        pending.seen(100 + index, float(index))
        got += [(m.indices.tolist(), m.label) for m in pending.due()]
    assert got == [([105], 0), ([106], 0), ([107], 0)]
    assert pending.paired == pending.received == 1


def test_a_moment_in_a_gap_of_the_data_matches_nothing_and_is_counted():
    pending = filled(16, [0, 1, 2, 3, 100, 101])
    assert len(pending.pair(about(50)).indices) == 0
    assert (pending.unmatched, pending.late) == (1, 0)
    pending.pair(about(150))
    pending.seen(6, 200.0)
    assert pending.due() == []
    assert pending.unmatched == 2
    assert pending.early == 0


def test_feedback_about_what_has_left_the_ring_is_late_and_what_is_left_of_a_stretch_is_paired():
    pending = filled(4, range(10))  # holds 6..9
    assert len(pending.pair(about(3)).indices) == 0
    assert pending.late == 1
    assert pending.pair(about(3, duration=4)).indices.tolist() == [6, 7]
    assert (pending.late, pending.paired) == (1, 1)


def test_the_same_feedback_twice_is_harmless_and_a_changed_mind_is_heard():
    pending = filled(8, range(8))
    assert pending.pair(about(4)).indices.tolist() == [4]
    assert pending.pair(about(4)).indices.tolist() == []
    assert pending.duplicates == 1
    changed = pending.pair(about(4, label=0))
    assert (changed.indices.tolist(), changed.label) == ([4], 0)
    again = pending.pair(about(4))
    assert (again.indices.tolist(), again.label, pending.duplicates) == ([4], 1, 1)
    other = Pending(8)
    other.restore(pending.snapshot())
    assert other.pair(about(4)).indices.tolist() == []
    assert other.pair(about(4, label=0)).indices.tolist() == [4]
    assert adds_up(pending)


@pytest.mark.parametrize(
    ("time", "duration"), [(np.nan, 0.0), (np.inf, 0.0), (1.0, -1.0), (1.0, np.nan)]
)
def test_impossible_times_match_nothing_and_are_counted(time, duration):
    pending = filled(8, range(8))
    assert len(pending.pair(about(time, duration=duration)).indices) == 0
    assert pending.unmatched == 1


def test_samples_need_not_come_in_the_order_of_their_times():
    pending = filled(8, [0, 1, 3, 2, 4])
    assert pending.pair(about(2, duration=1)).indices.tolist() == [2, 3]
    assert pending.pair(about(2.2)).indices.tolist() == [3]


def test_memory_stays_bounded_under_any_flood_of_feedback():
    pending = filled(4, range(4))
    for n in range(3000):
        pending.pair(about(1000 + n))
    assert pending.early == EARLY
    assert pending.dropped == 3000 - EARLY
    assert len(pending.snapshot()["known"]) == REMEMBERED
    assert adds_up(pending)


def test_times_since_the_epoch_do_not_lose_the_sample_halfway_to_the_next():
    times = 1.7e9 + np.arange(100) * 1e-3
    pending = filled(100, times)
    assert pending.pair(about(0.5 * (times[50] + times[51]))).indices.tolist() in ([50], [51])


@given(steps, st.integers(1, 10), st.integers(1, 12))
@settings(max_examples=40)
def test_a_restored_one_goes_on_as_the_one_that_was_saved(steps, capacity, other):
    one, now, index = Pending(capacity), 0.0, 0
    two = None
    for n, step in enumerate(steps):
        if n == len(steps) // 2:
            two = Pending(capacity)
            two.restore(one.snapshot())
            Pending(other).restore(one.snapshot())  # of another length: must not fail
        both = [p for p in (one, two) if p is not None]
        if step[0] == "sample":
            now, index = now + 0.25 * step[1], index + 1
            for pending in both:
                pending.seen(index, now)
            results = [[(m.indices.tolist(), m.label) for m in p.due()] for p in both]
        else:
            feedback = about(now + 0.25 * step[1], int(step[3]), 0.25 * (step[2] % 4))
            results = [p.pair(feedback).indices.tolist() for p in both]
        assert results[0] == results[-1]
    if two is not None:
        assert [one.paired, one.late, one.unmatched, one.early] == [
            two.paired, two.late, two.unmatched, two.early,
        ]  # fmt: skip


def test_a_shorter_ring_keeps_the_newest_samples_of_a_longer_one():
    long, short = filled(8, range(20)), Pending(3)
    short.restore(long.snapshot())
    assert short.pair(about(0, duration=100)).indices.tolist() == [17, 18, 19]
    short.seen(20, 20.0)
    assert [m.indices.tolist() for m in short.due()] == [[20]]


def test_a_ring_without_room_is_refused():
    with pytest.raises(ValueError, match="capacity must be 1 sample or more, got 0"):
        Pending(0)
