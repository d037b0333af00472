"""Online gradient updates of the attention parameters, from matured feedback.

A step learns from one stream: the encoder from the errors that the trunk made at the newest
moments whose whole horizon is known, recall from the slopes that were gathered since its last
step. Steps are bounded (Huber loss, clipped norm, Adam), a step that is not finite never lands,
and keys and values in every cache are made anew afterwards.

References:
    Huber 1964 for the loss; Kingma & Ba, Adam, 2015, by way of Optax.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from adaptive import analogues, attention, ring
from adaptive.model import Params, Shape, State

LEARNING_RATE = 1e-3
LARGEST_STEP = 1.0  # norm of a gradient; a longer one is cut


class Report(NamedTuple):
    """What became of a step."""

    loss: Float[Array, ""]  # Huber, of the encoder, before the step [variances]
    landed: Bool[Array, ""]  # else it was not finite, and nothing changed


def optimiser() -> optax.GradientTransformation:
    """Adam behind a cut at `LARGEST_STEP`."""
    return optax.chain(optax.clip_by_global_norm(LARGEST_STEP), optax.adam(LEARNING_RATE))


def loss(params: attention.Params, state: State, shape: Shape) -> Float[Array, ""]:
    """Huber loss of the encoder against the trunk's errors after the newest matured moments.

    Args:
        params: The encoder.
        state: The stream.
        shape: Of the model; `origins` moments are learned from.

    Returns:
        The mean over moments, steps and channels [variances].
    """
    newest = state.count - shape.horizon  # the newest moment whose errors are all known
    rows = shape.window + shape.origins - 1
    inputs = ring.last(state.cache.inputs, newest, rows)
    seen = (jnp.arange(rows - 1, -1, -1) <= newest).astype(jnp.float32)
    errors = state.memory.errors
    origins = ring.row(errors, newest - jnp.arange(shape.origins - 1, -1, -1))
    target = errors.rows[errors.stream, 0, origins].astype(jnp.float32)
    got = attention.encode_window(params, inputs, seen, window=shape.window, heads=shape.heads)
    known = seen[-shape.origins :, None]
    return jnp.sum(known * optax.huber_loss(got, target.reshape(got.shape))) / (
        jnp.maximum(jnp.sum(known), 1.0) * got.shape[1]
    )


def step(
    params: Params,
    momenta: optax.OptState,
    bank: State,
    stream: Int[Array, ""],
    shape: Shape,
) -> tuple[Params, optax.OptState, State, Report]:
    """Take one gradient step on the feedback of one stream.

    Args:
        params: Shared by the bank.
        momenta: The state of `optimiser`.
        bank: All streams, on a leading axis.
        stream: Which stream to learn from.
        shape: Of the model, static.

    Returns:
        Parameters, momenta and bank after the step, and a report. The caches are consistent with
        the parameters that are returned.
    """
    row = ring.of_stream(bank, stream)
    value, slope = jax.value_and_grad(loss)(params.encoder, row, shape)
    slopes = Params(analogues.Params(row.slope[:-1], row.slope[-1]), slope)
    updates, moved = optimiser().update(slopes, momenta, params)
    stepped = optax.apply_updates(params, updates)
    numbers = jax.tree.leaves((value, slopes, stepped))
    landed = jnp.stack([jnp.isfinite(one).all() for one in numbers]).all()
    params, momenta = (
        jax.tree.map(lambda new, old: jnp.where(landed, new, old), new, old)
        for new, old in ((stepped, params), (moved, momenta))
    )
    cache = attention.reproject(params.encoder, bank.cache)
    bank = bank._replace(cache=cache, slope=bank.slope.at[stream].set(0.0))
    return params, momenta, bank, Report(value, landed)
