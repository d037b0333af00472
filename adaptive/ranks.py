"""How surprising each sample is, of one stream, within the compiled program: ranks by level.

Each part of what a model finds strange is compared with what is usual of it, exactly as
`adaptive.usual` does, and the one that stands out most with the earlier ones, as
`adaptive.surprise` does: there stands why. A sample costs 3 us here; in Python it took 25.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptive import ring, surprise, usual

QUANTILES = (usual.MEDIAN, usual.LOWER, usual.UPPER)
# Of each part: values counted, their weight, that of the next one; median and spread [bins]; of
# each quantile the bin that holds it, and the weight in the bins before.
NUMBER, TOTAL, WEIGHT, MEDIAN, SPREAD, AT, BELOW = 0, 1, 2, 3, 4, 5, 8
NUMBERS = 11
FIELDS = surprise.Surprise._fields


class State(NamedTuple):
    """What is known of the surprises of one stream, by level."""

    counts: ring.View  # (levels, bins): a histogram of each part, then one of what stood out most
    known: Float[Array, "levels parts numbers"]
    mean: Float[Array, "levels distances"]  # of each distance; 0 while it has been 0
    total: Float[Array, " levels"]  # in the histogram of what stood out most
    highest: Int[Array, " levels"]  # bin of it


def init(levels: int, parts: int, distances: int) -> State:
    """Nothing known yet.

    Args:
        levels: How many.
        parts: Of what is strange, at most.
        distances: How many of the first parts are distances to what was to be expected, at most.
    """
    bins = parts * usual.BINS + surprise.BINS
    known = jnp.zeros((levels, parts, NUMBERS), jnp.float32)
    known = known.at[..., WEIGHT].set(1.0).at[..., SPREAD].set(1.0)
    return State(
        ring.View(jnp.zeros((1, levels, bins), jnp.float32)),
        known,
        jnp.zeros((levels, distances), jnp.float32),
        jnp.zeros(levels, jnp.float32),
        jnp.zeros(levels, jnp.int32),
    )


def rank(
    state: State, level: int, parts: Float[Array, " parts"], distances: int
) -> tuple[State, Float[Array, " fields"]]:
    """Compare what the model found strange with the earlier of its level, then count it.

    Args:
        state: Of the stream.
        level: Index of the level, static.
        parts: At least 0, each in a unit of its own; negative where unknown.
        distances: How many of the first ones are distances, static.

    Returns:
        The state, and `FIELDS`.
    """
    view, at_most = state.counts, parts.shape[0]
    which = jnp.asarray(view.which, jnp.int32)

    def compare(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, known, most, in_full, part = carry
        rows, one, above = count(rows, (which, level, k * usual.BINS), known[k], parts[k])
        there = parts[k] >= 0
        trust = known[k, NUMBER] / (known[k, NUMBER] + usual.UNSURE)
        first = there & (trust * above > most)
        return (
            rows,
            known.at[k].set(jnp.where(there, one, known[k])),
            jnp.where(first, trust * above, most),
            jnp.where(there, jnp.maximum(in_full, above), in_full),
            jnp.where(first, k, part),
        )

    start = (view.rows, state.known[level, :at_most], -jnp.inf, -jnp.inf, jnp.int32(-1))
    rows, known, most, in_full, part = lax.fori_loop(0, at_most, compare, start)
    most, in_full = (jnp.where(part >= 0, x, 0.0) for x in (most, in_full))
    total, highest = state.total[level], state.highest[level]
    relative, mean = related(state.mean[level, :distances], total, parts[:distances])
    first = view.rows.shape[2] - surprise.BINS
    rows, p_value, total, highest = share(rows, (which, level, first), total, highest, in_full)
    state = State(
        ring.View(rows, view.stream),
        state.known.at[level, :at_most].set(known),
        state.mean.at[level, :distances].set(mean),
        state.total.at[level].set(total),
        state.highest.at[level].set(highest),
    )
    return state, jnp.stack((relative, most, in_full, p_value, part.astype(jnp.float32)))


def count(
    rows: Float[Array, "streams levels bins"],
    start: tuple[Array, int, Array],
    known: Float[Array, " numbers"],
    value: Float[Array, ""],
) -> tuple[Float[Array, "streams levels bins"], Float[Array, " numbers"], Float[Array, ""]]:
    """How far a value lies above the median of the earlier ones, then count it: `Usual.above`.

    Quantiles are looked for after a value and not before the next one, which is the same: arrays
    of a bank are written first and read after.
    """
    place = 0.5 * jnp.log(value * value + usual.LEAST**2) - usual.FIRST
    place = jnp.minimum(place * usual.BINS_PER_E, usual.BINS - 0.5)
    place = jnp.where(value >= 0, place, 0.0)
    above = jnp.where(known[NUMBER] > 0, (place - known[MEDIAN]) / known[SPREAD], 0.0)
    bin_ = place.astype(jnp.int32)
    weight = known[WEIGHT] * (value >= 0)
    rows = increase(rows, (*start[:2], start[2] + bin_), weight)
    number = known[NUMBER] + 1
    at, below = known[AT:BELOW], known[BELOW:NUMBERS]
    below = below + weight * (bin_ < at)
    total = known[TOTAL] + weight
    grown = weight * (1 + jnp.maximum((usual.FORGETTING - 1) / number, 1 / usual.LONGEST))

    def scale_back(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, total, below, grown = carry
        old = lax.dynamic_slice(rows, start, (1, 1, usual.BINS))
        rows = lax.dynamic_update_slice(rows, old / grown, start)
        return rows, total / grown, below / grown, jnp.float32(1.0)

    # Conditions are loops of none or one: a branch would copy what passes through it.
    heavy = (weight > usual.RESCALE_AT).astype(jnp.int32)
    rows, total, below, grown = lax.fori_loop(0, heavy, scale_back, (rows, total, below, grown))

    def look(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, at, below, _, _ = carry
        here = lax.dynamic_slice(rows, start, (1, 1, usual.BINS))[0, 0]
        found = [moved(here, total * q, at[i], below[i]) for i, q in enumerate(QUANTILES)]
        at, below, (median, lower, upper) = (jnp.stack(one) for one in zip(*found, strict=True))
        spread = jnp.maximum(usual.OF_LOWER * (median - lower), usual.OF_UPPER * (upper - median))
        least = usual.LEAST_SPREAD * usual.BINS_PER_E
        return rows, at, below, median, jnp.maximum(spread, least)

    due = (number < usual.UNSURE) | (number % usual.EVERY == 0)
    due = (due & (value >= 0)).astype(jnp.int32)
    carry = (rows, at, below, known[MEDIAN], known[SPREAD])
    rows, at, below, median, spread = lax.fori_loop(0, due, look, carry)
    numbers = jnp.stack((number, total, grown, median, spread))
    return rows, jnp.concatenate((numbers, at, below)), above


def moved(
    counts: Float[Array, " bins"],
    target: Float[Array, ""],
    at: Float[Array, ""],
    below: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """A quantile after the histogram has grown: its bin, the weight before, where it is [bins]."""

    def down(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        counts, at, below = carry
        return counts, at - 1, below - counts[at - 1]

    def up(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        counts, at, below = carry
        return counts, at + 1, below + counts[at]

    def too_high(carry: tuple[Array, ...]) -> Array:
        return (carry[2] > target) & (carry[1] > 0)

    def too_low(carry: tuple[Array, ...]) -> Array:
        counts, at, below = carry
        return (at < usual.BINS - 1) & (below + counts[at] < target)

    carry = lax.while_loop(too_high, down, (counts, at.astype(jnp.int32), below))
    counts, at, below = lax.while_loop(too_low, up, carry)
    here = counts[at]
    within = jnp.where(here > 0, (target - below) / jnp.where(here > 0, here, 1.0), 0.0)
    return at.astype(jnp.float32), below, at + within


def related(
    mean: Float[Array, " distances"], total: Float[Array, ""], parts: Float[Array, " distances"]
) -> tuple[Float[Array, ""], Float[Array, " distances"]]:
    """Mean of the distances, each relative to its running mean, which learns; see `Rank.rank`."""
    parts, rate = jnp.maximum(parts, 0.0), jnp.maximum(1.0 / (total + 1.0), 1.0 / surprise.NORMAL)
    known = mean > 0
    relative = jnp.where(known, parts / jnp.where(known, mean, 1.0), 1.0)
    return jnp.mean(relative), jnp.where(known, mean + rate * (parts - mean), parts)


def share(
    rows: Float[Array, "streams levels bins"],
    start: tuple[Array, int, int],
    total: Float[Array, ""],
    highest: Int[Array, ""],
    above: Float[Array, ""],
) -> tuple[Float[Array, "streams levels bins"], Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """Share of the earlier samples that stood out at least as much, then count: `Rank.p_value`."""
    bins, unit = surprise.BINS, surprise.BINS_A_UNIT
    size = jnp.abs(above)
    place = jnp.sign(above) * jnp.log(size + jnp.sqrt(size * size + 1.0))
    place = jnp.clip(place * unit + bins // 2, 0.0, bins - 1.0)
    bin_ = place.astype(jnp.int32)
    within = place - bin_
    keep = jnp.where(total + 1.0 >= surprise.FORGET_AT, 0.5, 1.0)
    # Written first and read after, and in full: else XLA would copy the bank.
    counts = lax.dynamic_slice(rows, start, (1, 1, bins))
    counts = (counts + (jnp.arange(bins) == bin_)) * keep
    rows = lax.dynamic_update_slice(rows, counts, start)
    counts = lax.dynamic_slice(rows, start, (1, 1, bins))[0, 0] / keep
    higher = jnp.where(jnp.arange(bins) > bin_, counts, 0.0).reshape(-1, 16)
    beyond = jnp.sum(jnp.sum(higher, axis=0)) + 1.0 + (1 - within) * (counts[bin_] - 1.0)
    # Beyond all seen: an exponential tail orders what counting cannot.
    tail = jnp.where(total > 0, jnp.exp(-(bin_ - highest + within) / unit), 1.0)
    beyond = jnp.where((bin_ > highest) | (total == 0), tail, beyond)
    p_value = jnp.minimum(beyond / (total + 1.0), 1.0)
    return rows, p_value, (total + 1.0) * keep, jnp.maximum(highest, bin_)


def increase(
    rows: Float[Array, "streams levels bins"],
    at: tuple[Array | int, ...],
    weight: Float[Array, ""] | float,
) -> Float[Array, "streams levels bins"]:
    """Add to one bin."""
    old = lax.dynamic_slice(rows, at, (1, 1, 1))
    return lax.dynamic_update_slice(rows, old + weight, at)
