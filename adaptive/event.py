"""The event head: how likely an operator would confirm an event here, learned from labels.

A logistic regression on how strange a moment is and on what was said after the moments that it
recalls: labels are values of the memory, read with the attention's weights. Each label moves it by
one step of an extended Kalman filter, so there is no learning rate.

References:
    Duran-Martin et al., Low-rank extended Kalman filtering for online learning, 2023, in its plain
    form: a last layer, a Bernoulli likelihood.
"""

from math import exp, log, log10, nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FEATURES = 4  # bias, surprise, p-value, what was said after the recalled moments
PRIOR_VARIANCE = 1.0
BIAS_VARIANCE = 0.1  # one label says what an event looks like, less how often they come
DRIFT = 1e-4  # added to the variance at each label: old labels lose weight slowly
FIRST_BIAS = -3.0  # before the labels say otherwise, events are rare


class State(NamedTuple):
    """The head of one stream; nothing is changed in place but the rings."""

    weights: np.ndarray  # [features]
    covariance: np.ndarray  # [features, features]
    features: np.ndarray  # [memory, features] ring
    said: np.ndarray  # [memory] ring: +1 event, -1 nothing, 0 unknown
    labels: int


def init(memory: int, features: int) -> State:
    """A head without labels, over a memory of `memory` samples."""
    weights = np.zeros(features)
    weights[0] = FIRST_BIAS
    covariance = np.diag([BIAS_VARIANCE] + [PRIOR_VARIANCE] * (features - 1))
    return State(
        weights,
        covariance,
        np.zeros((memory, features)),
        np.zeros(memory),
        0,
    )


def features(
    state: State,
    index: int,
    relative: float,
    p_value: float,
    lag: Int[np.ndarray, " nearest"],
    weight: Float[np.ndarray, " nearest"],
) -> tuple[float, ...]:
    """What the head sees of sample number `index`."""
    recalled = 0.0
    if state.labels and (total := float(weight.sum())) > 0:
        recalled = float(weight @ state.said[(index - lag) % len(state.said)]) / total
    return 1.0, log(max(relative, 1e-3)), -log10(max(p_value, 1e-9)), recalled


def predict(state: State, index: int, seen: tuple[float, ...]) -> float:
    """Probability of an event at sample number `index`; NaN before the first label."""
    at = index % len(state.said)
    state.features[at], state.said[at] = seen, 0.0
    return sigmoid(float(np.dot(state.weights, seen))) if state.labels else nan


def learn(state: State, indices: Int[np.ndarray, " samples"], label: int) -> State:
    """Learn a label of some samples from the strangest of them.

    Args:
        state: The head.
        indices: Numbers of the samples, all still in the memory.
        label: 1 or 0.

    Returns:
        The head after the label.
    """
    at = indices % len(state.said)
    state.said[at] = 1.0 if label else -1.0
    seen = state.features[at]
    x = seen[np.argmax(seen[:, 1])]
    p = sigmoid(float(x @ state.weights))
    covariance = state.covariance + DRIFT * np.eye(len(x))
    px = covariance @ x
    gain = px / (1.0 / max(p * (1 - p), 1e-3) + x @ px)
    weights = state.weights + gain * (label - p) / max(p * (1 - p), 1e-3)
    covariance = covariance - np.outer(gain, px)
    return state._replace(
        weights=weights, covariance=0.5 * (covariance + covariance.T), labels=state.labels + 1
    )


def sigmoid(x: float) -> float:
    """The logistic function, safe at both ends."""
    return 1.0 / (1.0 + exp(-min(max(x, -30.0), 30.0)))
