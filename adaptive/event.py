"""The event head: how likely an operator would confirm an event here, learned from labels.

Labels are values of a memory of their own. The key of a labelled moment is the shape of the
signal around it: windows of two lengths that end at it and a little after. The query is the
shape that the newest samples make. What speaks is how much nearer the nearest confirmed moment is
than the nearest dismissed one, at each length,

    logit = bias + sum over lengths of w (log distance to dismissed - log distance to confirmed),

and the weights are a logistic regression on what each label found in the memory before it was
written there itself, which is as good as leaving it out. Both kinds of label count alike in all,
however many there are: operators look at few events and dismiss many. No learning rate. People
err: a label is doubted while its moment lies among those of the other kind, as near to them as they
are to each other and nearer than to its own; then it neither speaks nor teaches.

References:
    Snell et al., Prototypical networks, 2017, with the nearest prototype instead of their mean:
    of a kind that has several forms the mean is none of them. Firth 1993 for a prior in place of
    infinite weights where the kinds can be told apart without error. Wilson, Asymptotic
    properties of nearest neighbor rules using edited data, 1972, for leaving out what its
    neighbours contradict; Breunig et al., LOF, 2000, for near measured by how near those are to
    each other: the first label of a kind has only strangers around it.
"""

from collections.abc import Sequence
from math import exp, nan

import numpy as np
from jaxtyping import Bool, Float, Int

POINTS = 48  # of a shape, whatever its length
LENGTHS = (96, 192)  # [samples]; multiples of `POINTS`
ENDS = (0, 24, 48, 72)  # [samples] after a labelled moment
LOOK = 80  # [samples] after a labelled moment it shows what it is
EVERY = 4  # [samples] between two looks
KEPT = 256  # labels of each kind at most; the newest
LARGEST = 1 << 18  # numbers in the keys of a kind, a length and an end at most
SAME = 0.01  # added to distances: two that small are alike
STRANGER = 2.0**0.5  # distance to a kind that nothing is known of: that of unrelated shapes
FIRST_WEIGHT, HOLD = 1.0, 1.0  # prior of the weights: mean, and inverse of the variance
STEPS, CLOSE = 4, 1e-2  # of Newton's method, after each label: how many, and when it is there
MOST = 30.0  # of a logit
WAITING = 512  # [samples] that a label may wait for its turn
NEIGHBOURS, AS_NEAR = 5, 1.5  # that a label is held against; and how near, relative to their own
LABELLED = ("moments", "keys", "said", "found")  # one row of each for a label
# The arrays that outlive a restart.
ARRAYS = ("values", "above", "unit", *LABELLED, "past", "weights")
ABSURD = 1e15  # as good as not measured; its square fits in what shapes are kept in
LARGEST_SHAPE = 1e4  # of the numbers of a shape, in units; one that has more is of no moment
OUTLIER = 1e3  # usual deviations from the middle; what is farther is of no weight in the unit
STRETCH, PARTS = 96, 8  # [samples] between moments learned of a stretch, and how many


class Head:
    """The event head of one stream."""

    def __init__(self, memory: int, channels: int):
        """Start without labels.

        Args:
            memory: How far back a label may reach [samples].
            channels: Of the stream.
        """
        length = memory + LENGTHS[-1] + WAITING
        self.values = np.zeros((length, channels), np.float32)  # ring
        self.above = np.zeros(length, np.float32)  # ring: how strange each sample was
        self.count = 0  # samples seen
        self.unit = np.ones(channels, np.float32)  # of the shapes; measured at the first label
        self.waiting: list[tuple[int, int]] = []  # labelled moments that have yet to show
        self.last = (-1, -1, -1)  # newest labelled sample, the newest learned, their label
        self.kept = max(min(KEPT, LARGEST // (POINTS * channels)), 4)
        shape = (0, len(LENGTHS), len(ENDS), POINTS * channels)
        self.keys = np.zeros(shape, np.float32)  # of each label that is kept, oldest first
        self.moments = np.zeros(0, np.int64)  # that they are of: numbers of samples
        self.said = np.zeros(0)
        self.found = np.zeros((0, 1 + len(LENGTHS)))  # what each of them found
        self.apart = np.zeros((0, 0), np.float32)  # distance between their moments
        self._compare()
        self.past = np.zeros((0, 2 + len(LENGTHS)))  # label and findings, of those without a key
        self.learned = 0  # labels, in all
        self.weights = prior()
        self.probability = nan

    def observe(self, index: int, values: Sequence[float], above: float) -> float:
        """Take in a sample; return the probability of an event, NaN before the first label.

        Args:
            index: Number of the sample in its stream; what was left out is held.
            values: Of the sample, centred; NaN where not measured, as which `ABSURD` ones count.
            above: How strange it is.
        """
        length = len(self.values)
        if index > self.count:
            held = self.values[(self.count - 1) % length].tolist()
            for missing in range(max(self.count, index - length), index):
                self._put(missing, held, 0.0)
        if not all([-ABSURD < x < ABSURD for x in values]):  # nor is NaN
            held = self.values[(index - 1) % length].tolist()
            values = [x if -ABSURD < x < ABSURD else h for x, h in zip(values, held, strict=True)]
        self._put(index, values, above)
        oldest = self.count - length + LENGTHS[-1]
        while self.waiting and (moment := self.waiting[0][0]) + LOOK < self.count:
            self._learn(*self.waiting.pop(0))
            # One a sample, to be in time; but none may fall out of the memory.
            if moment > oldest + WAITING // 2:
                break
        if self.learned and self.count % EVERY == 0:
            found = self._found(np.array([self.count - 1]))[0]
            self.probability = sigmoid(float(found @ self.weights))
        return self.probability

    def _put(self, index: int, values: Sequence[float], above: float) -> None:
        at = index % len(self.values)
        self.values[at], self.above[at] = values, above
        self.count = index + 1

    def learn(self, indices: Int[np.ndarray, " samples"], label: int) -> None:
        """Learn a label of some samples, as soon as what follows them has been seen.

        Of a stretch the strangest sample is learned, and one in each `STRETCH` samples. What was
        said otherwise of the same sample before is forgotten: people change their minds.

        Args:
            indices: Numbers of the samples, all still in the memory.
            label: 1 or 0.
        """
        if len(indices) > 1:
            strangest = indices[np.argmax(self.above[indices % len(self.above)])]
            spread = indices[:: max(STRETCH, len(indices) // PARTS)]
            chosen = [strangest, *spread[np.abs(spread - strangest) >= STRETCH]]
        else:
            newest, learned, said = self.last
            goes_on = said == label and indices[0] == newest + 1
            chosen = indices if not goes_on or indices[0] - learned >= STRETCH else []
        for moment in map(int, chosen):
            if (moment, 1 - label) in self.waiting:
                self.waiting.remove((moment, 1 - label))
            self.waiting.append((moment, label))
        self.waiting.sort()
        learned = int(chosen[-1]) if len(chosen) else self.last[1]
        self.last = (int(indices[-1]), learned, label)

    def _learn(self, moment: int, label: int) -> None:
        if not self.learned:
            seen = self.values[: min(self.count, len(self.values))]
            self.unit = unit(seen)
        changed = np.flatnonzero((self.moments == moment) & (self.said != label))
        if len(changed):
            self._drop(changed)
            self._compare()
        shapes = [self._shapes(moment + np.array(ENDS), length) for length in LENGTHS]
        if np.abs(shapes).max() >= LARGEST_SHAPE:
            return  # beside an absurd value nobody sees what it is like
        found = self._found(np.arange(moment, moment + LOOK + 1, EVERY))
        clearest = found[np.argmax(found.sum(axis=1))]
        self.moments = np.append(self.moments, moment)
        self.keys = np.concatenate((self.keys, np.stack(shapes)[None]))
        self.said = np.append(self.said, float(label))
        self.found = np.concatenate((self.found, clearest[None]))
        same = np.flatnonzero(self.said == label)
        if len(same) > self.kept:
            if self.trusted[same[0]]:
                self.past = np.vstack((self.past, [label, *self.found[same[0]]]))[-KEPT:]
            self._drop(same[:1])
        self.learned += 1
        self._compare()
        now = np.column_stack((self.said, self.found))[self.trusted]
        rows = np.concatenate((self.past, now))
        self.weights = fit(self.weights, rows[:, 1:], rows[:, 0])

    def _drop(self, labels: Int[np.ndarray, " labels"]) -> None:
        """Forget some labels, by their places."""
        for name in LABELLED:
            setattr(self, name, np.delete(getattr(self, name), labels, axis=0))
        known = labels[labels < len(self.apart)]
        self.apart = np.delete(np.delete(self.apart, known, 0), known, 1)

    def _compare(self) -> None:
        """Find which labels to trust; of `apart` only what is new is missing."""
        known, labels = len(self.apart), len(self.said)
        flat = self.keys.reshape(labels, np.prod(self.keys.shape[1:]))
        self.square = (self.keys**2).sum(axis=3)  # of each key
        whole = self.square.sum(axis=(1, 2))
        apart = np.zeros((labels, labels), np.float32)
        apart[:known, :known] = self.apart
        least = whole[known:, None] + whole - 2 * flat[known:] @ flat.T
        apart[known:] = np.sqrt(np.maximum(least, 0.0) / (len(LENGTHS) * len(ENDS)))
        apart[:known, known:] = apart[known:, :known].T
        self.apart, self.trusted = apart, ~doubted(apart, self.said)

    def _shapes(
        self, ends: Int[np.ndarray, " moments"], length: int
    ) -> Float[np.ndarray, "moments numbers"]:
        """The shapes of the samples up to some moments, without their level."""
        size = len(self.values)
        if len(ends) == 1 and (last := ends[0] % size) >= length - 1:  # far faster, the common case
            window = self.values[last - length + 1 : last + 1]
        else:
            window = self.values[(ends[:, None] + np.arange(1 - length, 1)) % size]
        each = length // POINTS
        window = np.add.reduce(window.reshape(len(ends), POINTS, each, -1), axis=2) / each
        window -= np.add.reduce(window, axis=1, keepdims=True) / POINTS
        window /= self.unit * np.float32(np.sqrt(window[0].size))
        np.clip(window, -LARGEST_SHAPE, LARGEST_SHAPE, out=window)
        return window.reshape(len(ends), -1)

    def _found(self, ends: Int[np.ndarray, " moments"]) -> Float[np.ndarray, "moments features"]:
        """What is recalled at some moments: 1, and for each length the log ratio of distances."""
        found = np.ones((len(ends), 1 + len(LENGTHS)))
        kinds = [self.trusted & (self.said == kind) for kind in (0, 1)]
        for i, length in enumerate(LENGTHS):
            shapes = self._shapes(ends, length)
            least = nearest(self.keys[:, i], self.square[:, i], shapes)
            dismissed, confirmed = (
                least[kind].min(axis=0) if kind.any() else STRANGER for kind in kinds
            )
            found[:, 1 + i] = np.log((dismissed + SAME) / (confirmed + SAME))
        return found

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything that outlives a restart, as arrays."""
        numbers = [self.count, self.learned, *self.last]
        waiting = np.array(self.waiting, np.int64).reshape(-1, 2)
        return {name: getattr(self, name) for name in ARRAYS} | {
            "waiting": waiting,
            "numbers": np.array(numbers, np.int64),
            "probability": np.array(self.probability),
        }

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Take up where `snapshot` was made."""
        for name in ARRAYS:
            setattr(self, name, np.array(saved[name]))
        self.waiting = [(int(moment), int(label)) for moment, label in saved["waiting"]]
        self.count, self.learned, *last = (int(number) for number in saved["numbers"])
        self.last = (last[0], last[1], last[2])
        self.probability = float(saved["probability"])
        self.apart = np.zeros((0, 0), np.float32)
        self._compare()


def unit(seen: Float[np.ndarray, "samples channels"]) -> Float[np.ndarray, " channels"]:
    """The deviation of each channel, which a few absurd values do not change."""
    middle = np.median(seen, axis=0)
    off = np.abs(seen - middle)
    usual = np.median(off, axis=0)
    held = np.where((off > OUTLIER * usual) & (usual > 0.0), middle, seen)
    return np.maximum(held.std(axis=0), 1e-6 * np.abs(held).max(axis=0) + 1e-12)


def prior() -> Float[np.ndarray, " features"]:
    """The weights before any label: nearer to confirmed than to dismissed speaks for an event."""
    return np.array([0.0] + [FIRST_WEIGHT] * len(LENGTHS))


def nearest(
    keys: Float[np.ndarray, "labels ends numbers"],
    square: Float[np.ndarray, "labels ends"],
    shapes: Float[np.ndarray, "moments numbers"],
) -> Float[np.ndarray, "labels moments"]:
    """Distance of some shapes to each labelled moment, where they are nearest to it."""
    flat = keys.reshape(-1, shapes.shape[1])
    # BLAS is slow for a matrix of one column.
    product = flat @ (shapes[0] if len(shapes) == 1 else shapes.T)
    least = square[..., None] - 2 * product.reshape(*square.shape, len(shapes))
    return np.sqrt(np.maximum(least.min(axis=1) + (shapes**2).sum(axis=1), 0.0))


def doubted(
    apart: Float[np.ndarray, "labels labels"], said: Float[np.ndarray, " labels"]
) -> Bool[np.ndarray, " labels"]:
    """Which labels lie among those of the other kind.

    Args:
        apart: Distance between any two.
        said: 1 or 0.
    """
    labels = len(said)
    far = np.where(np.eye(labels, dtype=bool), STRANGER, apart)
    strangers = np.full((labels, NEIGHBOURS), STRANGER)

    def around(kind: float) -> tuple[np.ndarray, np.ndarray]:
        """The nearest neighbours of a kind: their numbers, and their mean distance."""
        columns = np.flatnonzero(said == kind)
        if not len(columns):
            return np.zeros((labels, 0), np.int64), strangers.mean(axis=1)
        distance = far[:, columns]
        many = min(NEIGHBOURS, len(columns))
        order = np.argpartition(distance, many - 1, axis=1)[:, :many]
        nearest = np.take_along_axis(distance, order, axis=1)
        return columns[order], np.concatenate((nearest, strangers), axis=1)[:, :NEIGHBOURS].mean(1)

    (dismissed, to_dismissed), (confirmed, to_confirmed) = around(0.0), around(1.0)
    is_one = said > 0
    own, other = np.where(is_one, (to_confirmed, to_dismissed), (to_dismissed, to_confirmed))
    # How near those of the other kind are to each other; of a few nothing can be said.
    usual = np.zeros(labels)
    for these, neighbours in ((is_one, dismissed), (~is_one, confirmed)):
        if (~these).sum() > NEIGHBOURS:
            usual[these] = own[neighbours[these]].mean(axis=1)
    return (other < own) & (other < AS_NEAR * usual)


def fit(
    weights: Float[np.ndarray, " features"],
    rows: Float[np.ndarray, "labels features"],
    said: Float[np.ndarray, " labels"],
) -> Float[np.ndarray, " features"]:
    """Fit the weights to all labels, from where they stand, by Newton's method.

    Args:
        weights: The ones before.
        rows: What each label found.
        said: 1 or 0.

    Returns:
        The weights; those before, should a step lead nowhere.
    """
    confirmed = said.sum()
    each = np.where(
        said > 0, 0.5 / max(confirmed, 1.0), 0.5 / max(len(said) - confirmed, 1.0)
    ) * len(said)
    first = prior()

    def cost(w: np.ndarray) -> float:
        logit = np.clip(rows @ w, -MOST, MOST)
        fits = np.logaddexp(0.0, np.where(said > 0, -logit, logit))
        return float(each @ fits + 0.5 * HOLD * ((w - first) ** 2).sum())

    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -MOST, MOST)))
        slope = rows.T @ (each * (p - said)) + HOLD * (weights - first)
        bend = (rows * (each * p * (1 - p))[:, None]).T @ rows + HOLD * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        if np.abs(step).max() < CLOSE:
            break
        before = cost(weights)
        while cost(weights - step) > before and np.abs(step).max() > 1e-6:
            step = step / 2
        if cost(weights - step) <= before:
            weights = weights - step
    return weights


def sigmoid(x: float) -> float:
    """The logistic function, safe at both ends."""
    return 1.0 / (1.0 + exp(-min(max(x, -MOST), MOST)))
