from dataclasses import dataclass
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.backlog import Backlog, Line, Rank
from adaptive.demand import CRITICAL, EVERYONE, PRESSED


@dataclass(eq=False)
class Waiting:
    line: Line
    number: int
    due: float
    answered: bool = False


def add(backlog, line, number, due):
    backlog.add(item := Waiting(line, number, due))
    return item


def answer(item, refined=True):
    item.answered = True
    item.line.answered(refined)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"firm": (3, 2)}, "0 <= m <= k"),
        ({"firm": (-1, 2)}, "0 <= m <= k"),
        ({"firm": (0, 0)}, "0 <= m <= k"),
        ({"weight": 0.0}, "above 0"),
        ({"weight": inf}, "above 0"),
    ],
)
def test_a_rank_that_means_nothing_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Rank(**fields)


actions = st.lists(
    st.tuples(st.sampled_from(["add", "take", "drop", "answer"]), st.integers(0, 3)), max_size=120
)


@given(actions, st.sampled_from([EVERYONE, CRITICAL, PRESSED]), st.booleans())
def test_samples_come_out_once_and_those_of_a_stream_in_their_order(did, whom, short):
    lines = [Line(Rank(n == 0, (n // 2, 3), 1.0 + n)) for n in range(4)]
    backlog, held, out, taken = Backlog(), [[] for _ in lines], [[] for _ in lines], []
    for number, (what, n) in enumerate(did):
        if what == "add":
            held[n].append(add(backlog, lines[n], number, number + (3 - n)))
        elif what == "take":
            got = backlog.take(n + 1, whom, short)
            assert len(got) <= n + 1
            if whom == EVERYONE:
                assert len(got) == min(n + 1, sum(map(len, held)))
            for item in got:
                k = lines.index(item.line)
                assert held[k].pop(0) is item
                out[k].append(item.number)
            taken += [item for item in got if not item.answered]
        elif what == "drop" and held[n] and held[n][0].answered:
            assert backlog.drop(lines[n]) is held[n].pop(0)
        elif what == "answer":
            while taken:  # the older ones first
                answer(taken.pop(0))
            if (head := backlog.head()) is not None:
                answer(head, refined=False)
        waiting = [item for items in held for item in items]
        assert len(backlog) == len(waiting)
        assert set(backlog) == set(waiting)
        wanted = min((item.due for item in (*waiting, *taken) if not item.answered), default=inf)
        head = backlog.head()
        assert (head.due if head else inf) == wanted
        for line, items in zip(lines, held, strict=True):
            left = [item for item in items if not item.answered]
            assert line.unanswered == len(left)
            assert line.due() == min((item.due for item in left), default=inf)
    assert all(numbers == sorted(numbers) for numbers in out)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8), st.data())
def test_a_stream_is_pressed_when_its_promise_would_break_and_counts_when_it_did(refined, of, data):
    least = data.draw(st.integers(0, of))
    line, backlog, waiting = Line(Rank(firm=(least, of))), Backlog(), data.draw(st.integers(1, 4))
    items = [add(backlog, line, n, float(n)) for n in range(len(refined) + waiting)]
    broken, seen = 0, [True] * of  # before the first nothing was missed
    for item, good in zip(items, refined, strict=False):
        backlog.take(1)
        answer(item, good)
        seen.append(good)
        broken += sum(seen[-of:]) < least
    assert line.broken == broken
    # By hand: all that wait are missed.
    after, breaks = list(seen), False
    for _ in range(waiting):
        after.append(False)
        breaks |= sum(after[-of:]) < least
    assert line.pressed() == breaks


def test_of_too_many_the_critical_go_first_then_the_pressed_then_those_that_had_least():
    ranks = Rank(), Rank(firm=(1, 1)), Rank(critical=True), Rank(weight=4.0), Rank()
    lines, backlog = [Line(rank) for rank in ranks], Backlog()
    plain, firm, critical, heavy, poor = lines
    plain.share, heavy.share, poor.share = 0.5, 0.8, 0.4
    for n, line in enumerate(lines):
        add(backlog, line, n, 10.0 - n)
    order = [backlog.take(1, short=True)[0].line for _ in lines]
    assert order == [critical, firm, heavy, poor, plain]
    for n, line in enumerate(lines):
        add(backlog, line, n, 10.0 - n)
    # While there is time for all: by when they are due, but for the critical one.
    assert [backlog.take(1)[0].line for _ in lines] == [critical, poor, heavy, firm, plain]


def test_who_only_has_to_catch_up_comes_last():
    backlog, behind, fresh = Backlog(), Line(Rank(critical=True)), Line()
    answer(add(backlog, behind, 0, 0.0), refined=False)
    add(backlog, fresh, 1, 5.0)
    assert backlog.group(CRITICAL, 0.0).size == 0
    assert [item.line for item in backlog.take(1, short=True)] == [fresh]
    assert [item.line for item in backlog.take(9, short=True)] == [behind]


def test_a_group_counts_what_has_to_be_taken_before_its_answers():
    backlog, line = Backlog(), Line(Rank(critical=True, firm=(1, 2)))
    old = add(backlog, line, 0, 1.0)
    add(backlog, line, 1, 2.0)
    add(backlog, Line(), 2, 0.5)
    answer(old, refined=False)
    assert backlog.group(CRITICAL, 0.25) == (1.75, 2)
    assert backlog.group(PRESSED, 0.25) == (1.75, 2)
    assert backlog.group(EVERYONE, 0.25) == (0.25, 3)


@pytest.mark.parametrize("weights", [(1.0,) * 8, (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0)])
def test_where_not_all_can_be_refined_shares_are_as_weights_and_nobody_starves(weights):
    # Each round all streams send a sample, always in the same order, and a third is refined.
    lines, backlog, rng = [Line(Rank(weight=w)) for w in weights], Backlog(), Random(0)
    had, longest, since = dict.fromkeys(lines, 0), 0, dict.fromkeys(lines, 0)
    for number in range(6000):
        items = [add(backlog, line, number, number + rng.random()) for line in lines]
        good = backlog.take(len(lines) // 3, short=True)
        backlog.take(len(lines))
        for item in items:
            answer(item, item in good)
            since[item.line] = 0 if item in good else since[item.line] + 1
            longest = max(longest, since[item.line])
            had[item.line] += item in good
    shares = [had[line] / w for line, w in zip(lines, weights, strict=True)]
    jain = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
    assert jain > 0.95
    assert longest < 150
