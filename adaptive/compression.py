"""A smaller encoder: weights in eight bits, and heads and hidden units in order of importance.

What a level leaves out is the end of the last layer's heads and hidden units, so the most important
ones stand first. How important one is, is learned online: how far the loss would move, to first
order, if it were not there. The order of heads and units changes nothing of what all of them
together compute. The heads of a delta layer stay where they are, as what is kept of the past is by
head and not made anew.

References:
    Molchanov et al., Importance estimation for neural network pruning, 2019; Michel et al., Are
    sixteen heads really better than one, 2019; both with a running mean in place of a data set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adaptive.delta import Gates
from adaptive.layers import Layer, Params

MOST = 127  # of a whole number in eight bits
RATE = 1 / 64  # of the running means, in gradient steps


class Importance(NamedTuple):
    """Running means of the last layer's."""

    heads: Float[Array, " heads"]
    units: Float[Array, " hidden"]


def init(params: Params) -> Importance:
    """Nothing is known: the order stays."""
    layer = params.layers[-1]
    return Importance(jnp.zeros_like(layer.out[:, 0, 0]), jnp.zeros_like(layer.down[:, 0]))


def fixed(layer: Layer) -> bool:
    """Whether heads have to stay where they are."""
    return isinstance(layer.fading, Gates)


def weigh(
    known: Importance, params: Params, slopes: Params
) -> tuple[Importance, Int[Array, " heads"], Int[Array, " hidden"]]:
    """Take in the slopes of one gradient step.

    Args:
        known: Before.
        params: Where the slopes were taken.
        slopes: Of the loss.

    Returns:
        The importance of heads and units in their new order, most important first, and that order
        as indices into the old one, for `ordered`.
    """
    layer, slope = params.layers[-1], slopes.layers[-1]
    felt = Importance(
        jnp.abs(jnp.sum(layer.out * slope.out, axis=(1, 2))),
        jnp.abs(jnp.sum(layer.down * slope.down, axis=1)),
    )
    if fixed(layer):
        felt = felt._replace(heads=jnp.zeros_like(felt.heads))
    means = jax.tree.map(lambda old, new: old + RATE * (new - old), known, felt)
    heads, units = jnp.argsort(-means.heads), jnp.argsort(-means.units)
    return Importance(means.heads[heads], means.units[units]), heads, units


def ordered(params: Params, heads: Int[Array, " heads"], units: Int[Array, " hidden"]) -> Params:
    """Put the heads and hidden units of the last layer in another order."""
    layer = params.layers[-1]
    if not fixed(layer):
        layer = layer._replace(
            query=layer.query[:, heads],
            key=layer.key[:, heads],
            value=layer.value[:, heads],
            out=layer.out[heads],
            fading=layer.fading[heads],
        )
    layer = layer._replace(up=layer.up[:, units], down=layer.down[units])
    return params._replace(layers=(*params.layers[:-1], layer))


def rounded(params: Params) -> Params:
    """Round to what eight bits hold, with a unit for each column of a matrix."""
    return jax.tree.map(lambda one: unpacked(*packed(one)), params)


def packed(one: Float[Array, "..."]) -> tuple[Array, Array]:
    """A parameter as whole numbers in eight bits, and the unit of each of the last axis."""
    axes = tuple(range(one.ndim - 1))
    unit = jnp.max(jnp.abs(one), axis=axes, keepdims=True, initial=0.0) / MOST
    return jnp.round(one / jnp.where(unit > 0, unit, 1.0)).astype(jnp.int8), unit


def unpacked(numbers: Array, unit: Array) -> Array:
    """What `packed` was given, rounded."""
    return numbers * unit
