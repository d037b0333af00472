import numpy as np
import pytest

from adaptive import event
from adaptive.controller import Controller
from adaptive.settings import Model

MEMORY = 512
NO_LAG, NO_WEIGHT = np.zeros(1, np.int32), np.zeros(1, np.float32)


def take(head, index, relative, p_value, lag=NO_LAG, weight=NO_WEIGHT):
    seen = event.features(head, index, relative, p_value, lag, weight)
    return event.predict(head, index, seen)


def test_before_the_first_label_nothing_is_said_of_events():
    head = event.init(MEMORY, 4)
    assert np.isnan([take(head, n, 5.0, 0.01) for n in range(20)]).all()
    head = event.learn(head, np.array([3]), 1)
    assert 0 < take(head, 20, 5.0, 0.01) < 1


def test_what_is_confirmed_is_told_from_what_is_dismissed():
    rng, head = np.random.default_rng(0), event.init(MEMORY, 4)

    def sample(strange):
        if strange:
            return float(rng.uniform(4, 8)), float(rng.uniform(1e-4, 1e-3))
        return float(rng.uniform(0.3, 2)), float(rng.uniform(0.05, 1))

    for index in range(400):
        strange = bool(rng.random() < 0.3)
        take(head, index, *sample(strange))
        if index % 4 == 0:
            head = event.learn(head, np.array([index]), int(strange))
    events = [take(head, 400 + n, *sample(True)) for n in range(40)]
    others = [take(head, 440 + n, *sample(False)) for n in range(40)]
    assert min(events) > 0.8
    assert max(others) < 0.2


def test_a_label_of_a_stretch_is_learned_from_its_strangest_sample():
    one, many = event.init(MEMORY, 4), event.init(MEMORY, 4)
    for head in (one, many):
        for index, relative in enumerate((1.0, 1.5, 6.0, 0.5)):
            take(head, index, relative, 0.5 / relative)
    one = event.learn(one, np.array([2]), 1)
    many = event.learn(many, np.array([0, 1, 2, 3]), 1)
    np.testing.assert_array_equal(one.weights, many.weights)
    assert many.said[:4].tolist() == [1.0] * 4
    assert one.said[:4].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_dismissed_pattern_goes_quiet_while_the_other_stays():
    head, probabilities = event.init(MEMORY, 4), {0: [], 1: []}
    # Two patterns as strange as each other come in turn; each recalls its own last five times.
    for index in range(200):
        pattern = index % 2
        lag = np.array([2, 4, 6, 8, 10], np.int32)
        weight = np.array([0.4, 0.3, 0.1, 0.1, 0.1], np.float32) * (index >= 10)
        probabilities[pattern].append(take(head, index, 5.0, 1e-3, lag, weight))
        head = event.learn(head, np.array([index]), pattern)
    dismissed, confirmed = probabilities[0], probabilities[1]
    assert max(dismissed[-10:]) < 0.1
    assert min(confirmed[-10:]) > 0.9
    assert dismissed[-1] < dismissed[3]


def test_a_label_moves_the_head_as_bayes_does_in_one_dimension():
    # With the bias alone the extended Kalman filter is a Newton step of Laplace's method.
    head = event.init(4, 2)
    head.features[0] = 1.0, 0.0
    prior = head.covariance[0, 0] + event.DRIFT
    after = event.learn(head, np.array([0]), 1)
    p = 1 / (1 + np.exp(3.0))
    variance = 1 / (1 / prior + p * (1 - p))
    assert after.weights[0] == pytest.approx(-3.0 + variance * (1 - p), rel=1e-9)
    assert after.covariance[0, 0] == pytest.approx(variance, rel=1e-9)


def test_no_label_makes_a_probability_that_is_not_one():
    rng, head = np.random.default_rng(1), event.init(MEMORY, 4)
    for index in range(3000):
        relative = float(10.0 ** rng.uniform(-9, 6))
        p = take(head, index, relative, float(10.0 ** rng.uniform(-12, 0)))
        head = event.learn(head, np.array([index]), int(rng.random() < 0.5))
        assert index == 0 or 0 <= p <= 1
    assert np.linalg.eigvalsh(head.covariance).min() > 0


def test_labels_of_what_is_forgotten_or_yet_to_come_are_ignored():
    controller = Controller(2, 1, Model(memory_samples=512))
    for n in range(600):
        estimate = controller.arrive(1, np.array([float(n % 7)]))
        controller.skip()
        controller.settle(estimate, float(n), np.array([float(n % 7)]))
    before = controller.members[1].head.weights.copy()
    assert not controller.label(1, np.array([0, 87, 600, 10_000, -1]), 1)
    assert not controller.label(1, np.array([], np.int64), 1)
    assert not controller.label(0, np.array([0]), 1)  # that stream has seen nothing
    np.testing.assert_array_equal(controller.members[1].head.weights, before)
    assert not controller.members[1].head.said.any()
    assert controller.label(1, np.array([87, 88, 600]), 1)
    assert np.flatnonzero(controller.members[1].head.said).tolist() == [88]
    assert controller.label(1, np.array([599]), 0)
    assert controller.members[1].head.said[599 % 512] == -1.0
