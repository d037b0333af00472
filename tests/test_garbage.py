import gc
import weakref

import pytest

from adaptive import garbage
from adaptive.garbage import YOUNG, Collector


class Ring:
    """A reference cycle."""

    def __init__(self):
        self.me = self


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def collector(clock):
    collector = Collector(clock)
    collector.start()
    yield collector
    collector.stop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def idle(seconds):
    return False


def busy(seconds):
    return True


def full():
    return gc.get_stats()[2]["collections"]


def rings(many):
    return weakref.WeakSet([Ring() for _ in range(many)])


def test_while_something_waits_nothing_is_collected(collector):
    left = rings(2 * YOUNG)
    collector.rest(busy)
    assert len(left) == 2 * YOUNG
    collector.rest(idle)
    assert not left


def test_a_busy_run_sees_no_full_collection_and_cycles_do_not_pile_up(collector):
    before, most, left = full(), 0, []
    for n in range(3000):  # there is a pause now and then, but never a long one
        left.append(rings(100))
        collector.rest(lambda seconds, n=n: seconds > 0.0 or n % 10 > 0)
        left = [some for some in left if some]
        most = max(most, sum(map(len, left)))
    assert full() == before
    assert most <= 3 * YOUNG
    assert collector.told() == (0, 0, 0.0)


def test_cycles_do_not_pile_up_even_if_there_is_never_a_pause(collector, monkeypatch):
    monkeypatch.setattr(garbage, "MOST_YOUNG", 2000)
    monkeypatch.setattr(garbage, "MOST_OLD", 3)
    most, left, kept = 0, [], []
    for _ in range(3000):
        kept.append([Ring() for _ in range(50)])  # they live until they are old
        left += [weakref.WeakSet(kept[-1])]
        if len(kept) > 100:
            kept.pop(0)
        collector.rest(busy)
        left = [some for some in left if some]
        most = max(most, sum(map(len, left)))
    told = collector.told()
    assert told.full == told.waited > 0
    # Those in use, and what comes between two collections of the oldest.
    assert most < 100 * 50 + 3 * (garbage.MIDDLE + 2) * 2000


def test_a_full_collection_waits_for_a_pause_longer_than_it_takes(collector, clock, monkeypatch):
    took = 0.125

    def collect(generation=2, real=gc.collect):
        clock.now += took if generation == 2 else 0.0
        return real(generation)

    monkeypatch.setattr(gc, "collect", collect)
    collector.start()  # measures
    asked = []

    def short(seconds):
        asked.append(seconds)
        return seconds > 0.2

    clock.now += garbage.EVERY
    collector.rest(short)
    assert collector.told().full == 0
    assert asked == [0.0, garbage.SAFE * took]
    collector.rest(idle)
    assert collector.told() == (1, 0, 125.0)
    clock.now += garbage.AT_LEAST  # put off long enough
    collector.rest(busy)
    assert collector.told() == (2, 1, 125.0)
    assert "2 full collections, 1 while something waited" in collector.told().text


def test_full_collections_that_others_ask_for_are_counted(collector):
    gc.collect()
    collector.stop()
    gc.collect()
    assert collector.told().full == 1
