"""How much slower than nominal the machine is now, and how far beyond that a call may still take.

One log factor that all levels share, filtered so that a step is followed at once and a spike is
not, and a margin over it that only a share of epsilon of the calls exceeds. Plain Python: it runs
with every call to a compiled level (`adaptive.governor`).
"""

from math import exp, log, sqrt
from typing import NamedTuple

STEEP = 4.0  # standard deviations from which a residual is a spike or the first of a step
DOWN_GAIN = 0.2  # largest gain for good news
NOISE_MIN, DRIFT_MIN = 1e-4, 1e-5  # variances, of the residuals and of the log slowdown
OFTEN = 0.02  # share of the residuals above the threshold at which the tail begins
BODY, THRESHOLD_MIN = log(1.0 / OFTEN - 1.0), 0.01  # of the law below that threshold
EXCESS_MAX = 0.7  # what lies further out counts as so much
UNSEEN = 1e3  # [nats] of a call that was slower than any can be
HOPELESS = 1.6  # [nats] of a spike that no margin could have been wide enough for
CORRECTING = 0.1  # how far a late call corrects the margin
CORRECTION, CORRECTION_MIN, CORRECTION_MAX = 0.0, -0.2, 1.5  # at first, limits
# [s] that is added to times before their logarithms are taken. Of what a call takes beyond what is
# typical a part grows with it, as when caches are cold, and a part does not: a processor that is
# taken away comes back after some milliseconds, however long the call is. So far above the shift
# residuals are ratios, and far below it differences (Tukey's started logarithm). What one call in
# a thousand exceeds, of the full level for 32 samples, 1.9 ms, is then 5.0 and 3.8 ms in two
# recordings of idle machines, where ratios gave 6.0 and 5.3, and 18 and 19 ms on crowded ones, for
# 63 and 82; and all levels and sizes exceed theirs more equally often. 2 and 5 ms are nearly as
# good.
SHIFT = 1e-2

USUAL, SPIKE, STEP, LOW = range(4)  # kinds of completion

new = tuple.__new__  # makes a NamedTuple in half the time (0.3 us of 0.6)


class Slowdown(NamedTuple):
    """One log factor that all levels share."""

    mean: float = 0.0  # ln(cost / nominal)
    variance: float = 0.04  # of the mean
    drift: float = 1e-4  # variance by which the mean moves between completions
    noise: float = 2.5e-3  # variance of one completion about the mean
    hold: float = 0.0  # residual of a spike that may be the first of a step
    hold_left: int = 0  # decisions for which to believe it
    spikes: int = 0  # in a row
    lows: int = 0  # unsure calls in a row that were cheaper than decisions believe
    previous: float = 0.0  # the last completion


class Tail(NamedTuple):
    """How far beyond what is typical calls may go, so that only a share of epsilon goes further."""

    threshold: float = 0.05  # 98 % quantile of the residuals
    excess: float = 0.02  # mean excess over it
    correction: float = CORRECTION  # conformal
    pending: float = 0.0  # residual of a spike that may still prove to be a step
    # The largest residual of the last 1 / epsilon calls or more, of those that count for the tail:
    # such a one is exceeded by a share of epsilon at most, whatever their law (by order statistics,
    # as in conformal prediction); and where the tail ends, as when a processor is away for one time
    # slice, no fitted law knows it.
    highest: float = 0.0  # of the newest of them,
    before: float = UNSEEN  # of those before,
    calls: int = 0  # and how many the newest are


def margin(tail: Tail, depth: float) -> float:
    """Residual that only a share of epsilon exceeds, by a Pareto tail that ends where the last did.

    Args:
        tail: What is known of it.
        depth: ln(OFTEN / epsilon).
    """
    wide, correction = tail.threshold + tail.excess * depth, tail.correction
    wide = wide if wide > 0.0 else 0.0
    seen = tail.highest if tail.highest > tail.before else tail.before
    if seen < tail.threshold:
        seen = tail.threshold
    if correction > 0.0:
        wide += correction
        return wide if wide < seen else seen
    wide = wide if wide < seen else seen
    return wide + correction if -correction < 0.5 * wide else 0.5 * wide


def reckoned(slowdown: Slowdown, tail: Tail, depth: float) -> float:
    """The margin that a decision made now must reckon with: a spike may be the first of a step."""
    usual = margin(tail, depth)
    return slowdown.hold if slowdown.hold_left and slowdown.hold > usual else usual


def beyond(typical: float, margin: float) -> float:
    """What a call takes that typically takes so long [s], but for a share of epsilon [s]."""
    return (typical + SHIFT) * exp(margin) - SHIFT


def within(budget: float, margin: float) -> float:
    """What a call may typically take to be within a budget but for a share of epsilon [s]."""
    return (budget + SHIFT) * exp(-margin) - SHIFT


def chance(tail: Tail, budget: float, typical: float) -> float:
    """Probability that a call takes no longer than a budget.

    Above the threshold by the Pareto tail, below it by a logistic law that meets it there.

    Args:
        tail: What is known of it.
        budget: [s].
        typical: What the call typically takes [s].
    """
    room = log((budget + SHIFT) / (typical + SHIFT))
    threshold = tail.threshold if tail.threshold > THRESHOLD_MIN else THRESHOLD_MIN
    if room >= threshold:
        return 1.0 - OFTEN * exp((threshold - room) / tail.excess)
    return 1.0 / (1.0 + exp(-BODY * room / threshold))


def track(
    slowdown: Slowdown, z: float, gap: float, unsure: bool, shift: float = 0.0
) -> tuple[Slowdown, float, int]:
    """Filter one completion.

    A Kalman step on the log slowdown, with adaptive drift and noise and a gain of at most 0.2
    downwards, except after unsure calls. A residual above 4 standard deviations is a spike:
    decisions believe it twice and nothing is learned from it; if the next completion is as high, it
    was a step and is adopted at once. Down, two unsure calls in a row as far below are a step.

    Args:
        slowdown: As it was.
        z: ln(cost / nominal) of the completion.
        gap: Time since the last completion, in units of the usual time, 1 to 20.
        unsure: Nobody counted on it, so decisions may be wrong about what fits.
        shift: `SHIFT`, in times what the call nominally takes: a short one says less.

    Returns:
        The new state, the residual with the shift, and the kind of the completion.

    References:
        Wan et al., ALERT, 2020 (one shared slowdown; adaptive drift). Unlike theirs in the log
        domain, with adaptive noise and a drift floor 1e4 times lower.
    """
    mean, variance, drift, noise, hold, hold_left, spikes, lows, previous = slowdown
    predicted = variance + drift * gap
    typical = exp(mean)
    weight = typical / (typical + shift)  # of a change of the mean in the residual
    total = weight * weight * predicted + noise
    residual = log((exp(z) + shift) / (typical + shift))
    steep = STEEP * sqrt(total)
    if residual > steep:
        if not spikes:
            # As if it lay just at the limit, so that truly wider noise soon counts as usual.
            noise += 0.02 * (steep * steep - noise)
            state = new(Slowdown, (mean, variance, drift, noise, residual, 2, 1, 0, z))
            return state, residual, SPIKE
        mean = z if z < previous else previous
        variance = noise * (1.0 + shift * exp(-mean)) ** 2  # of a mean that one call tells
        return new(Slowdown, (mean, variance, drift, noise, hold, 0, 0, 0, z)), residual, STEP
    gain = weight * predicted / total
    if residual < 0.0 and gain * weight > DOWN_GAIN and not unsure:
        gain = DOWN_GAIN / weight
    moved = gain * residual
    mean += moved
    drift = 0.3 * drift + 0.7 * moved * moved
    if drift < DRIFT_MIN:
        drift = DRIFT_MIN
    variance = (1.0 - gain * weight) * predicted
    if residual < -steep:  # the way down from a slowdown is no noise
        lows = lows + 1 if unsure else 0
        if lows > 1:
            mean, lows = (z if z > previous else previous), 0
            variance = noise * (1.0 + shift * exp(-mean)) ** 2
        return new(Slowdown, (mean, variance, drift, noise, hold, 0, 0, lows, z)), residual, LOW
    square = residual * residual - weight * weight * predicted
    noise += 0.02 * ((square if square > NOISE_MIN else NOISE_MIN) - noise)
    return new(Slowdown, (mean, variance, drift, noise, hold, 0, 0, 0, z)), residual, USUAL


def widen(
    tail: Tail,
    residual: float,
    kind: int,
    late: bool,
    unsure: bool,
    epsilon: float,
    tried: bool = False,
) -> Tail:
    """Track the tail of the residuals, and correct it by how often calls were late.

    Residuals of steps never reach it, those of spikes do one completion later, but for the largest
    that was seen, which a spike is at once. A call that stood
    still says nothing about margins: a process that stops more often than calls may be late would
    else widen them without end, and to no avail.

    Args:
        tail: As it was.
        residual: Of this completion.
        kind: Of this completion.
        late: The call took longer than it had.
        unsure: Nobody counted on it.
        epsilon: How often calls may be late.
        tried: It was hoped for all the same.

    References:
        Hill, 1975 (mean excess); Gibbs and Candes, Adaptive conformal inference, 2021. Unlike
        theirs steps and unsure calls do not count, so the long-run share excludes them. The tail
        learns from those that were tried, too: else one that has become too wide would leave
        nothing sure, and never learn that it is.
    """
    threshold, excess, correction, pending, highest, before, calls = tail
    if kind == STEP or (kind == SPIKE and residual > HOPELESS):
        return new(Tail, (threshold, excess, correction, 0.0, highest, before, calls))
    if unsure:
        # No wind-up: what grew in an overload that no level could meet must not outlast it.
        if not late and correction > CORRECTION:
            correction = CORRECTION + 0.5 * (correction - CORRECTION)
        if not tried:
            return new(Tail, (threshold, excess, correction, 0.0, highest, before, calls))
    else:
        correction += CORRECTING * ((1.0 if late else 0.0) - epsilon)
    if correction > CORRECTION_MAX:
        correction = CORRECTION_MAX
    elif correction < CORRECTION_MIN:
        correction = CORRECTION_MIN
    calls += 1
    if residual > highest:
        highest = residual
    if calls * epsilon >= 1.0:
        highest, before, calls = 0.0, highest, 0
    if kind == SPIKE:
        return new(Tail, (threshold, excess, correction, residual, highest, before, calls))
    if pending:
        threshold, excess = _beyond(threshold, excess, pending)
    threshold, excess = _beyond(threshold, excess, residual)
    return new(Tail, (threshold, excess, correction, 0.0, highest, before, calls))


def _beyond(threshold: float, excess: float, residual: float) -> tuple[float, float]:
    """Move the quantile that is the threshold, and the mean excess over it."""
    step = 0.05 * (excess + 0.02)
    over = residual - threshold
    if over <= 0.0:
        return threshold - step * OFTEN, excess
    excess += 0.05 * ((over if over < EXCESS_MAX else EXCESS_MAX) - excess)
    return threshold + step * (1.0 - OFTEN), excess
