import json

import numpy as np
import pytest

from adaptive.surprise import Rank


def test_the_size_is_relative_to_the_running_mean_and_1_while_there_is_none():
    rank = Rank()
    assert [rank.rank(0.0).relative for _ in range(3)] == [1.0] * 3
    assert rank.rank(5.0).relative == 1.0  # the first of its kind
    assert rank.rank(10.0).relative == pytest.approx(2.0)


def test_how_far_above_is_believed_as_far_as_there_is_something_to_compare_with():
    rank = Rank()
    for n, value in enumerate(np.random.default_rng(0).exponential(size=1000).tolist()):
        surprise = rank.rank(value)
        assert surprise.above == pytest.approx(surprise.in_full * n / (n + 300))
        assert surprise.part == 0


def test_counts_that_are_halved_keep_the_p_values():
    rank = Rank()
    for above in np.random.default_rng(11).normal(size=1000):
        rank.p_value(float(above))
    rank.counts = [c * 65 for c in rank.counts]
    rank.total = sum(rank.counts)
    before = rank.p_value(1.5)
    for _ in range(3000):
        rank.p_value(0.0)
    assert rank.total < 65_536
    assert rank.p_value(1.5) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("before", [0, 1, 500])
def test_it_goes_on_where_it_was_saved(before):
    values = np.random.default_rng(1).exponential(size=before + 300).tolist()
    one, other = Rank(), Rank()
    for value in values[:before]:
        one.rank(value)
    other.restore(json.loads(json.dumps(one.snapshot())))
    assert [one.rank(x) for x in values[before:]] == [other.rank(x) for x in values[before:]]
