import numpy as np
import pytest
from scipy.optimize import minimize

from adaptive import event
from adaptive.calibration import TRACK
from adaptive.controller import Controller
from adaptive.event import Head
from adaptive.settings import Model

MEMORY = 2048
SHAPES = {
    "up": np.concatenate((np.linspace(0, 4, 20), np.linspace(4, 0, 20))),
    "down": -3 * np.hanning(40),
    "wave": 3 * np.sin(np.arange(40) / 2.5),
}


def stream(rng, many, every=150):
    """Noise with a shape in every `every` samples; the samples, and where each shape begins."""
    values = 0.3 * rng.normal(size=many * every)
    names = rng.choice(list(SHAPES), many)
    starts = np.arange(many) * every + rng.integers(40, 90, many)
    for start, name in zip(starts, names, strict=True):
        values[start : start + 40] += SHAPES[name]
    return values, starts, names


def lived(head, values, labels=(), first=0):
    """Take a stream through a head; `labels` are (when known, about which sample, label)."""
    labels, said = sorted(labels), []
    for n, x in enumerate(values, first):
        while labels and labels[0][0] <= n:
            _, moment, label = labels.pop(0)
            head.learn(np.array([moment]), label)
        said.append(head.observe(n, [float(x)], min(float(abs(x)), 1e9)))
    return np.array(said)


def test_before_the_first_label_nothing_is_said_of_events():
    rng, head = np.random.default_rng(0), Head(MEMORY, 1)
    values, starts, _ = stream(rng, 3)
    said = lived(head, values, [(starts[1] + 100, starts[1] + 20, 1)])
    assert np.isnan(said[: starts[1] + 100]).all()
    assert ((said[starts[1] + 105 :] > 0) & (said[starts[1] + 105 :] < 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("confirmed", list(SHAPES))
def test_what_was_confirmed_is_found_again_and_what_was_dismissed_is_not(confirmed):
    values, starts, names = stream(np.random.default_rng(1), 60)
    labels = [
        (start + 500, start + 20, int(name == confirmed))  # known half a thousand samples late
        for start, name in zip(starts[:30], names[:30], strict=True)
    ]
    said = lived(Head(MEMORY, 1), values, labels)
    strongest = np.array([said[start : start + 110].max() for start in starts[35:]])
    is_one = names[35:] == confirmed
    assert (strongest[is_one] > 0.5).mean() > 0.9
    assert (strongest[~is_one] > 0.5).mean() < 0.15


def test_a_label_waits_until_what_follows_was_seen():
    values, starts, _ = stream(np.random.default_rng(2), 3)
    head = Head(MEMORY, 1)
    lived(head, values[: starts[1] + 10])
    head.learn(np.array([starts[1] + 5]), 1)
    lived(head, values[starts[1] + 10 : starts[1] + 80], first=starts[1] + 10)
    assert head.learned == 0
    lived(head, values[starts[1] + 80 : starts[1] + 95], first=starts[1] + 80)
    assert head.learned == 1


def test_of_one_sample_the_last_word_counts():
    values, starts, _ = stream(np.random.default_rng(2), 8)
    about = int(starts[1] + 20)
    for words in ((1, 0), (0, 1, 0), (1, 0, 1)):
        head, only = Head(MEMORY, 1), Head(MEMORY, 1)
        beside = [(starts[3] + 200, int(starts[3] + 20), 1)]
        labels = [(starts[3] + 300 + 20 * k, about, word) for k, word in enumerate(words)]
        lived(head, values, beside + labels)
        lived(only, values, beside + labels[-1:])
        assert (head.moments.tolist(), head.said.tolist()) == (
            only.moments.tolist(),
            only.said.tolist(),
        )
        np.testing.assert_array_equal(head.apart, only.apart)
    head = Head(MEMORY, 1)
    lived(head, values[: about + 10])
    head.learn(np.array([about]), 1)
    head.learn(np.array([about]), 0)  # before what follows was seen
    assert head.waiting == [(about, 0)]


def test_of_a_stretch_the_strangest_sample_is_learned_and_a_few_more():
    head = Head(MEMORY, 1)
    lived(head, np.random.default_rng(3).normal(size=1500))
    head.above[700] = 99.0
    head.learn(np.arange(400, 1000), 1)
    moments = [moment for moment, _ in head.waiting]
    assert 700 in moments
    assert len(moments) <= event.PARTS + 1
    assert np.diff(sorted(moments)).min() >= event.STRETCH / 2
    # A stretch that is told sample by sample is the same to it.
    other = Head(MEMORY, 1)
    lived(other, np.zeros(1500))
    for n in range(400, 1000):
        other.learn(np.array([n]), 1)
    assert [moment for moment, _ in other.waiting] == list(range(400, 1000, event.STRETCH))


@pytest.mark.parametrize("confirmed", [0, 3, 40])
def test_the_weights_are_the_best_ones_by_another_solver(confirmed):
    rng = np.random.default_rng(4)
    said = np.zeros(50)
    said[:confirmed] = 1
    rows = np.column_stack((np.ones(50), rng.normal(size=(50, len(event.LENGTHS))) + said[:, None]))
    weights = event.prior()
    for _ in range(5):
        weights = event.fit(weights, rows, said)
    each = np.where(said > 0, 25 / max(confirmed, 1), 25 / (50 - confirmed))

    def cost(w):
        fits = np.logaddexp(0, -(2 * said - 1) * (rows @ w))
        return each @ fits + 0.5 * ((w - event.prior()) ** 2).sum()

    wanted = minimize(cost, event.prior(), tol=1e-10).x
    np.testing.assert_allclose(weights, wanted, atol=2 * event.CLOSE)


def clusters(rng, sizes, spread=0.1):
    """Distances between points in clusters that lie 1 apart, and the cluster of each."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(len(sizes))[which] + spread * rng.normal(size=(len(which), len(sizes)))
    return np.linalg.norm(points[:, None] - points, axis=2), which


def test_a_label_among_those_of_the_other_kind_is_doubted_whichever_it_is():
    apart, which = clusters(np.random.default_rng(0), (40, 12))
    turned = np.zeros(52, bool)
    turned[[3, 17, 30, 45]] = True
    for one in (0, 1):
        said = np.where(turned, which != one, which == one).astype(float)
        np.testing.assert_array_equal(event.doubted(apart, said), turned)


def test_labels_of_their_own_place_are_not_doubted_even_the_first_of_their_kind():
    for sizes in ((40, 1), (1, 1), (4, 3), (30, 2, 1)):
        apart, which = clusters(np.random.default_rng(1), sizes)
        assert not event.doubted(apart, (which > 0).astype(float)).any()
    assert event.doubted(np.zeros((0, 0)), np.zeros(0)).shape == (0,)


@pytest.mark.slow
def test_one_wrong_label_in_ten_hardly_changes_what_is_found():
    values, starts, names = stream(np.random.default_rng(9), 120)
    wrong = np.arange(60) % 10 == 4
    labels = [
        (start + 200, start + 20, int((name == "up") != turned))
        for start, name, turned in zip(starts[:60], names[:60], wrong, strict=True)
    ]
    head = Head(MEMORY, 1)
    said = lived(head, values, labels)
    np.testing.assert_array_equal(head.trusted, ~wrong)
    strongest = np.array([said[start : start + 110].max() for start in starts[64:]])
    is_one = names[64:] == "up"
    assert (strongest[is_one] > 0.5).mean() > 0.95
    assert (strongest[~is_one] > 0.5).mean() < 0.05


def test_a_shape_is_the_same_wherever_the_ring_begins_and_whatever_its_level():
    values = np.random.default_rng(5).normal(size=(5000, 2)).astype(np.float32)
    head = Head(MEMORY, 2)
    for n, x in enumerate(values):
        head.observe(n, x.tolist(), 0.0)
    ends = np.array([4999, 4096, 4100, 4200])
    for length in event.LENGTHS:
        got = head._shapes(ends, length)
        np.testing.assert_allclose(head._shapes(ends[:1], length), got[:1], atol=1e-6)
        for end, shape in zip(ends, got, strict=True):
            window = values[end - length + 1 : end + 1].reshape(event.POINTS, -1, 2).mean(axis=1)
            wanted = (window - window.mean(axis=0)) / np.sqrt(window.size)
            np.testing.assert_allclose(shape, wanted.ravel(), atol=1e-5)


def test_samples_that_were_left_out_and_missing_values_are_held():
    head = Head(256, 1)
    for index, value in ((0, 1.0), (1, 2.0), (5, 7.0), (6, np.nan), (2000, 3.0)):
        head.observe(index, [value], 1.0)
        if index == 6:
            assert head.values[:7, 0].tolist() == [1, 2, 2, 2, 2, 7, 7]
    at = 2000 % len(head.values)
    assert head.count == 2001
    assert head.values[at, 0] == 3
    assert (np.delete(head.values[:, 0], at) == 7).all()


@pytest.mark.parametrize("absurd", [1e300, 9.96921e36, 1e6])
@pytest.mark.parametrize("when", ["before the first label", "after labels"])
def test_an_absurd_value_takes_no_event_away(absurd, when):
    values, starts, names = stream(np.random.default_rng(1), 40)
    labels = [
        (start + 300, int(start) + 20, int(name == "up"))
        for start, name in zip(starts[:20], names[:20], strict=True)
    ]
    spoiled = values.copy()
    spoiled[200 if when == "before the first label" else starts[18] + 130] = absurd
    said, wanted = (lived(Head(MEMORY, 1), given, labels) for given in (spoiled, values))
    late = np.arange(len(values)) > starts[24]
    assert np.isfinite(said[late]).all()
    np.testing.assert_allclose(said[late], wanted[late], atol=0.2)
    assert (said[late] > 0.5).any()


def test_no_more_labels_are_kept_than_fit(monkeypatch):
    monkeypatch.setattr(event, "KEPT", 5)
    values, starts, _ = stream(np.random.default_rng(6), 40)
    labels = [(start + 200, start + 20, n % 2) for n, start in enumerate(starts)]
    head = Head(MEMORY, 1)
    said = lived(head, values, labels)
    assert head.learned == 39  # the last one waits
    assert (len(head.keys), head.said.sum()) == (10, 5)
    assert len(head.past) == 5  # what older ones found still counts
    assert ((said > 0) & (said < 1) | np.isnan(said)).all()


def test_a_restored_head_goes_on_as_if_nothing_had_happened():
    values, starts, _ = stream(np.random.default_rng(7), 16)
    labels = [(start + 300, start + 20, n % 2) for n, start in enumerate(starts)]
    one, other, cut = Head(MEMORY, 1), Head(MEMORY, 1), 1500
    early, late = ([x for x in labels if (x[0] <= cut - 1) == first] for first in (True, False))
    lived(one, values[:cut], early)
    other.restore({name: array.copy() for name, array in one.snapshot().items()})
    a, b = (lived(head, values[cut:], late, cut) for head in (one, other))
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()


def test_labels_of_what_is_forgotten_or_yet_to_come_are_ignored():
    controller = Controller(2, 1, Model(memory_samples=512))
    reach = controller.settings.feedback_samples
    for n in range(reach + 88):
        estimate = controller.mandatory(controller.arrive(1, np.array([float(n % 7)])))
        controller.settle(estimate, float(n), np.array([float(n % 7)]))
    head = controller.members[1].head
    assert not controller.label(1, np.array([0, 87, reach + 88, 10_000, -1]), 1)
    assert not controller.label(1, np.array([], np.int64), 1)
    assert not controller.label(0, np.array([0]), 1)  # that stream has seen nothing
    assert not head.waiting
    assert controller.label(1, np.array([87, 88, reach + 88]), 1)
    assert [moment for moment, _ in head.waiting] == [88]
    assert controller.label(1, np.array([reach + 87]), 0)
    assert len(head.waiting) == 2


def test_an_alarm_that_is_confirmed_does_not_count_against_the_rate():
    controller = Controller(1, 1, Model(memory_samples=512))
    for n in range(200):
        estimate = controller.mandatory(controller.arrive(0, np.array([float(n % 7)])))
        controller.settle(estimate, float(n), np.array([float(n % 7)]))
    member = controller.members[0]
    member.dismissals.alarms = {120: (0, 3, 0, -1)}
    before = member.calibration.threshold
    assert controller.label(0, np.array([125]), 0)
    assert member.calibration.threshold == before
    for _ in range(2):  # said twice it is still one
        assert controller.label(0, np.array([125]), 1)
        assert member.calibration.threshold == pytest.approx(before - 3 * TRACK)
    assert controller.label(0, np.array([125]), 0)  # the operator has changed their mind
    assert member.calibration.threshold == pytest.approx(before)


def test_every_label_that_is_taken_is_learned_one_a_sample():
    head, many, late = Head(MEMORY, 1), 300, 250
    values, _, _ = stream(np.random.default_rng(8), 30)
    lived(head, values[:3000])
    for moment in range(3000 - MEMORY, 3000 - MEMORY + many):
        head.learn(np.array([moment]), moment % 2)
    assert len(head.waiting) == many
    for learned in range(1, late):
        head.observe(2999 + learned, [float(values[2999 + learned])], 0.0)
        assert head.learned == learned
    for index in range(2999 + late, 3000 + many):
        head.observe(index, [float(values[index])], 0.0)
    assert (head.learned, head.waiting) == (many, [])
