import numpy as np
import pytest

from adaptive import dismissal
from adaptive.calibration import TRACK, Calibration
from adaptive.dismissal import Dismissals
from adaptive.surprise import Rank

MEMORY = 4096
BUMP = np.stack((3 * np.hanning(40), -2 * np.hanning(40)), axis=1)
WAVE = np.stack((4 * np.sin(np.arange(40) / 2), np.zeros(40)), axis=1)


def stream(rng, shapes, every=300):
    """What forecasts left: noise, with a shape every so often; and where each begins."""
    left = rng.normal(size=(len(shapes) * every + 500, 2))
    starts = 500 + every * np.arange(len(shapes)) + rng.integers(0, 100, len(shapes))
    for start, shape in zip(starts, shapes, strict=True):
        left[start : start + 40] += shape
    return left, starts


def lived(head, left, answers=(), first=0):
    """Take a stream in; `answers` are (when, indices, label). Whether each sample is known."""
    answers, known = sorted(answers, key=lambda a: a[0]), []
    for n, x in enumerate(left, first):
        while answers and answers[0][0] <= n:
            _, indices, label = answers.pop(0)
            head.learn(np.atleast_1d(indices), label)
        head.observe(n, x.tolist())
        # Asked as calibration does: of what stands out.
        known.append(bool(np.abs(head._smooth(n, 8)).max() > 2.3 and head.known()))
    return np.array(known)


@pytest.mark.slow
def test_what_was_dismissed_is_known_again_and_other_events_are_not():
    rng = np.random.default_rng(0)
    is_bump = rng.random(60) < 0.6
    left, starts = stream(rng, [BUMP if bump else WAVE for bump in is_bump])
    answers = [(s + 200, s + 10, 0) for s in starts[is_bump][:10]]
    known = lived(Dismissals(MEMORY, 2), left, answers)
    assert not known[: starts[is_bump][0] + 200].any()
    later = starts > answers[-1][0]
    seen = np.array([known[s : s + 60].any() for s in starts])
    assert seen[later & is_bump].mean() > 0.9
    at_once = np.array([known[s + 8 : s + 40].mean() for s in starts])
    assert at_once[later & ~is_bump].max() < 0.2


def test_what_is_nearer_to_a_confirmed_one_is_not_dismissed():
    rng, head = np.random.default_rng(1), Dismissals(MEMORY, 2)
    left, starts = stream(rng, [BUMP] * 12)
    answers = [(s + 200, s + 10, 0) for s in starts[:3]]
    answers += [(s + 200, s + 10, 1) for s in starts[3:9]]
    known = lived(head, left, answers)
    assert known[starts[3] : starts[3] + 60].any()
    assert [len(patterns) for patterns in head.patterns] == [3, 6]
    rows = [known[s : s + 60].mean() for s in starts[9:]]
    assert np.mean(rows) < known[starts[3] : starts[3] + 60].mean()


def test_labels_of_what_was_no_alarm_teach_nothing_and_units_do_not_matter():
    left, starts = stream(np.random.default_rng(2), [BUMP] * 6)
    head = Dismissals(MEMORY, 2)
    lived(head, left, [(1000, starts[0] - dismissal.NEAR - 50, 0)])
    assert not head.waiting
    assert not len(head.patterns[0])
    head, scaled = Dismissals(MEMORY, 2), Dismissals(MEMORY, 2)
    for n, x in enumerate(left):
        head.observe(n, x.tolist())
        scaled.observe(n, (x * [1e-9, 1e9]).tolist())
    np.testing.assert_allclose(head.left, scaled.left, rtol=1e-6, atol=1e-9)


def test_an_alarm_is_learned_once_however_many_samples_of_it_are_labelled():
    left, starts = stream(np.random.default_rng(7), [BUMP] * 4)
    head = Dismissals(MEMORY, 2)
    lived(head, left, [(starts[1] + 200 + k, starts[1] + k, 0) for k in range(150)])
    assert [len(patterns) for patterns in head.patterns] == [1, 0]


def test_of_an_alarm_the_last_word_counts_and_labels_beside_it_take_nothing_back():
    left, starts = stream(np.random.default_rng(8), [BUMP] * 4)
    alarm, late = starts[1], starts[1] + 200
    for words, kept in (((1, 0), [1, 0]), ((0, 1), [0, 1]), ((1, 0, 1), [0, 1])):
        head = Dismissals(MEMORY, 2)
        lived(head, left, [(late + 20 * k, alarm, word) for k, word in enumerate(words)])
        assert [len(patterns) for patterns in head.patterns] == kept
    head = Dismissals(MEMORY, 2)
    lived(head, left, [(late, alarm, 1), (late + 20, alarm + 30, 0)])
    assert [len(patterns) for patterns in head.patterns] == [1, 1]
    head = Dismissals(MEMORY, 2)
    lived(head, left, [(alarm + 50, alarm, 1), (alarm + 60, alarm, 0)])  # not yet seen whole
    assert [len(patterns) for patterns in head.patterns] == [1, 0]


def test_missing_values_count_as_foreseen_and_absurd_ones_are_cut():
    head = Dismissals(MEMORY, 2)
    for n, x in enumerate(np.random.default_rng(3).normal(size=(300, 2))):
        head.observe(n, [np.nan, 1e300 if n == 250 else float(x[1])])
    assert np.isfinite(head.left).all()
    assert not head.left[:, 0].any()
    assert head.left[250, 1] == dismissal.CUT


def test_a_restored_one_goes_on_as_if_nothing_had_happened():
    left, starts = stream(np.random.default_rng(4), [BUMP] * 8)
    answers = [(s + 60, np.arange(s, s + 30), 0) for s in starts]
    one, other, cut = Dismissals(MEMORY, 2), Dismissals(MEMORY, 2), starts[2] + 80
    lived(one, left[:cut], [a for a in answers if a[0] < cut])
    assert one.waiting
    other.restore({name: array.copy() for name, array in one.snapshot().items()})
    late = [a for a in answers if a[0] >= cut]
    np.testing.assert_array_equal(*(lived(d, left[cut:], late, cut) for d in (one, other)))


def alarms(surprises, known):
    calibration, rank, raised = Calibration(60 * 24 * 0.02, 5), Rank(), []
    for n, x in enumerate(surprises):
        compared = rank.rank(float(x))
        verdict = calibration.judge(60.0 * n, (0.0,), 0, compared, lambda n=n: bool(known[n]))
        raised.append(verdict.alarm)
        assert not verdict.dismissed or known[n]
        assert not (verdict.dismissed and verdict.alarm)
    return np.array(raised), calibration.threshold


def test_a_dismissed_alarm_is_not_raised_and_no_weaker_one_comes_in_its_place():
    rng = np.random.default_rng(5)
    surprises = rng.exponential(size=20_000)
    some = rng.random(20_000) < 0.5
    without, usual = alarms(surprises, np.zeros(20_000, bool))
    got, threshold = alarms(surprises, some)
    assert not got[some].any()
    assert got[~some].sum() == pytest.approx(without[~some].sum(), rel=0.1)
    assert threshold == pytest.approx(usual, rel=0.1)


def test_another_alarm_is_raised_while_a_dismissed_one_lasts():
    surprises = np.random.default_rng(6).exponential(size=1000)
    surprises[700:706] = 4000.0
    known = np.zeros(1000, bool)
    known[700:703] = True
    raised, _ = alarms(surprises, known)
    assert not raised[700:703].any()
    assert raised[703]


def test_confirming_an_incident_takes_back_what_its_alarms_have_moved_and_no_more():
    rng = np.random.default_rng(8)
    head, calibration, rank = Dismissals(MEMORY, 2), Calibration(60 * 24 * 0.02, 30), Rank()
    left = rng.normal(size=(1500, 2))
    for start in (600, 900):
        left[start : start + 40] += 3 * BUMP
    moved = {}
    for n, x in enumerate(left):
        head.observe(n, x.tolist())
        before = calibration.threshold
        compared = rank.rank(float(np.abs(x).max()))
        calibration.judge(60.0 * n, (0.0,), 0, compared, head.known)
        if calibration.counted:
            assert head.count_alarm() == 0
            moved[n] = calibration.threshold - before
        if n == 800:  # the first incident is dismissed; the second is quiet then
            assert head.learn(np.arange(600, 640), 0) == 0
    assert any(600 <= n < 640 for n in moved)
    near = [n for n in moved if 900 - 96 <= n < 1040]
    assert near
    assert head.learn(np.arange(900, 940), 1) == len(near)
    assert sum(moved[n] for n in near) == pytest.approx(TRACK * len(near), rel=0.1)
    assert head.learn(np.arange(900, 940), 0) == -len(near)
