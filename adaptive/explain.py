"""What carried an answer, checked by taking it away.

The attention weights say which past moments and which forecasters spoke; the effect of each is how
far the forecast moves when it is masked out and the others share its weight. For moments that needs
no second pass: without the part k of weight w, an average a becomes (a - w f_k) / (1 - w). What is
served is then combined anew. The query is read back from the memory, so it is in eight bits here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adaptive import (
    analogues,
    attention,
    corrections,
    experts,
    glitch,
    layers,
    model,
    packed,
    recall,
)
from adaptive.settings import EXPERTS, Level

ALONE = 1e-6  # what others weigh together at least, or the part was the only one


class Effects(NamedTuple):
    """What carried the newest forecast of a stream."""

    lag: Int[Array, " moments"]  # [samples] to the moments that were asked
    weight: Float[Array, " moments"]  # attention on them, mean over channels
    effect: Float[Array, " moments"]  # mean change of the forecast without each [deviations]
    expert_weight: Float[Array, " experts"]  # mean over steps and channels
    expert_effect: Float[Array, " experts"]  # [deviations]
    looked: Float[
        Array, " tokens"
    ]  # the encoder's weights, newest token first; none of delta layers


def moved(
    mean: Float[Array, "..."], part: Float[Array, "..."], weight: Float[Array, "..."]
) -> Float[Array, "..."]:
    """How far an average moves without one part; all of it, where there is no other."""
    rest = 1 - weight
    change = weight * (mean - part) / jnp.maximum(rest, ALONE)
    return jnp.where(rest > ALONE, change, -mean)


def effects(params: model.Params, state: model.State, level: Level) -> Effects:
    """Explain the newest answer of a stream, as a level with recall gave it.

    Args:
        params: Shared parameters.
        state: The stream, as `model.step` left it.
        level: Static; with memory.

    Returns:
        The moments in the order of `analogues.candidates`, the experts in that of `EXPERTS`.
    """
    count, memory = state.count, state.memory
    scale = glitch.scale(state.glitch)
    distance = recall.distances(state.far, count, level.memory_samples)
    near = recall.nearest(state.far, distance)
    lags = jnp.where(jnp.isfinite(near.distance), near.lag, 0).ravel()
    among = analogues.candidates(memory, count, state.season.lag, lags, level.memory_samples)
    key = packed.read(memory.keys, count)
    rows, out = analogues.attend(params.recall, memory, count, key, among)
    followed = packed.read(memory.errors, count - among.lag).swapaxes(1, 2)
    weight = rows[0][:, None]  # (moments, 1, channels)
    without = out[0] + jnp.where(weight > 0, moved(out[0], followed, weight), 0.0)
    trust = experts.weights(state.loss[: len(EXPERTS)])
    ahead = state.made[:, : len(EXPERTS)].transpose(1, 0, 2)
    ahead = (ahead - jnp.sum(trust * ahead, axis=0)) / scale

    def served(recalled: Array, ahead: Array) -> Array:
        """To the trunk; without the encoder, which is the same whatever is masked out."""
        recalled = corrections.bounded(recalled, state.loss)
        encoded = jnp.zeros_like(recalled)
        return corrections.serve(state.corrections, state.loss, ahead, recalled, encoded)[1]

    whole = served(out[0], ahead)
    change = jax.vmap(served, (0, None))(without, ahead) - whole
    alone = jnp.eye(len(EXPERTS), dtype=bool)
    others = jax.vmap(experts.weights, (None, 0))(state.loss[: len(EXPERTS)], ~alone)
    trunks = jnp.einsum("kehc,ehc->khc", others, ahead)  # without each expert
    masked = jnp.where(alone[..., None, None], 0.0, ahead - trunks[:, None])
    moves = trunks + jax.vmap(served, (None, 0))(out[0], masked) - whole
    return Effects(
        among.lag,
        jnp.mean(rows[0], axis=1),
        jnp.mean(jnp.abs(change), axis=(1, 2)),
        jnp.mean(trust, axis=(1, 2)),
        jnp.mean(jnp.abs(moves), axis=(1, 2)),
        looked(params.encoder, state, level),
    )


def looked(params: layers.Params, state: model.State, level: Level) -> Float[Array, " tokens"]:
    """What the encoder attended to, newest first; nothing where it has no weights on tokens."""
    window, cache = level.window_samples, state.cache
    if not window or not isinstance(cache, attention.Cache):
        return jnp.zeros(0)
    heads = level.heads or None
    return attention.looked(params, cache, state.count, window=window, heads=heads)[::-1]
