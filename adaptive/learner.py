"""Online gradient updates of the attention parameters, from matured feedback, in a safe shell.

A step learns from one stream: the encoder from the errors that the trunk made at the newest
moments whose whole horizon is known, recall from the slopes that were gathered since its last
step. Steps are bounded (Huber loss, clipped norm, Adam), a step that is not finite never lands,
recall's penalties stay within a factor of their first values, and keys and values in every cache
are made anew afterwards.

What has no gradient is made small by random search: `misses`, the share of errors larger than the
trunk's usual one, which is what a limit cares for. Then the encoder's readout moves by what pairs
of opposite random steps tell of the objective; Adam, bounds and judgement are the same.

An anchor stands beside the encoder: the parameters that were last found good. Before each step
both are judged on the same matured moments, which neither has learned from. If in the mean the
encoder that learns is better it becomes the anchor; if it is clearly worse it goes back to it.

References:
    Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning, 2017,
    for the search, with antithetic pairs. Huber 1964 for the loss; Kingma & Ba, Adam, 2015, by way
    of Optax. Dawid, Present position and potential developments: the prequential approach, 1984,
    for judging before learning.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from adaptive import analogues, attention, model, packed, ring
from adaptive.model import Params, Shape

Tree = TypeVar("Tree")  # of arrays

ENCODER_RATE = 6e-4  # of a step
RECALL_RATE = 0.024  # of the logarithm of a penalty
HUBER = 4.0  # [standard deviations] beyond it errors count linearly
LARGEST_STEP = 1.0  # norm of a gradient; a longer one is cut
REACH = 4.0  # that the logarithm of a penalty may move: a factor of 55
JUDGED = 64  # steps that a judgement takes, at least, and the memory of its means
PAIRS, SIZE = 16, 0.05  # of random steps, and their deviation
WORSE = 0.02  # relative: an encoder that is worse than its anchor by so much goes back


class State(NamedTuple):
    """What a learner remembers beside the parameters."""

    momenta: optax.OptState
    anchor: attention.Params
    usual: Float[Array, ""]  # discounted mean of the anchor's loss
    excess: Float[Array, ""]  # and of what the encoder's was more
    steps: Int[Array, ""]  # since the anchor and the encoder were the same
    taken: Int[Array, ""]  # steps in all; each searches in other directions


class Report(NamedTuple):
    """What became of a step."""

    loss: Float[Array, ""]  # of the encoder, before the step: [variances], or a share
    landed: Bool[Array, ""]  # else it was not finite and changed nothing, or the encoder went back


def optimiser() -> optax.GradientTransformation:
    """Adam behind a cut at `LARGEST_STEP`; how far to step is yet to be said."""
    return optax.chain(optax.clip_by_global_norm(LARGEST_STEP), optax.scale_by_adam())


def init(params: Params) -> State:
    """Nothing learned: the parameters are their own anchor."""
    zero = jnp.float32(0.0)
    none = jnp.int32(0)
    return State(optimiser().init(params), params.encoder, zero, zero, none, none)


def loss(
    params: attention.Params, state: model.State, shape: Shape, objective: str = "huber"
) -> Float[Array, ""]:
    """Loss of the encoder against the trunk's errors after the newest matured moments.

    Args:
        params: The encoder.
        state: The stream.
        shape: Of the model; `origins` moments are learned from.
        objective: `huber` [variances] or `misses`.

    Returns:
        The mean over moments, steps and channels.
    """
    newest = state.count - shape.horizon  # the newest moment whose errors are all known
    rows = shape.window + shape.origins - 1
    inputs = ring.last(state.cache.inputs, newest, rows)
    seen = (jnp.arange(rows - 1, -1, -1) <= newest).astype(jnp.float32)
    origins = newest - jnp.arange(shape.origins - 1, -1, -1)
    target = packed.read(state.memory.errors, origins).swapaxes(1, 2)
    got = attention.encode_window(params, inputs, seen, window=shape.window, heads=shape.heads)
    known = seen[-shape.origins :, None]
    error = got - target.reshape(got.shape)
    if objective == "misses":
        missed = jnp.abs(error) > jnp.sqrt(state.loss[model.TRUNK]).ravel()
        of = jnp.where(jnp.isfinite(error), missed, jnp.nan)
    else:
        of = optax.huber_loss(error, delta=HUBER)
    return jnp.sum(known * of) / (jnp.maximum(jnp.sum(known), 1.0) * got.shape[1])


def search(
    f: Callable[[Array], Float[Array, ""]], at: Array, key: Array
) -> tuple[Float[Array, ""], Array]:
    """Value of a function, and the direction in which it grows, by pairs of opposite steps.

    The direction is that of the gradient of the function when it is blurred by such steps.
    """
    steps = SIZE * jax.random.normal(key, (PAIRS, *at.shape))
    ahead, back = jax.vmap(f)(at + steps), jax.vmap(f)(at - steps)
    return f(at), jnp.tensordot(ahead - back, steps, axes=1) / (2 * PAIRS * SIZE**2)


def step(
    params: Params,
    learned: State,
    bank: model.State,
    stream: Int[Array, ""],
    shape: Shape,
    objective: str = "huber",
) -> tuple[Params, State, model.State, Report]:
    """Take one gradient step on the feedback of one stream.

    Args:
        params: Shared by the bank.
        learned: From `init`, or the step before.
        bank: All streams, on a leading axis.
        stream: Which stream to learn from.
        shape: Of the model, static.
        objective: Static; see `loss`.

    Returns:
        Parameters, learner and bank after the step, and a report. The caches are consistent with
        the parameters that are returned.
    """
    row = ring.of_stream(bank, stream)
    of = partial(loss, state=row, shape=shape, objective=objective)
    if objective == "misses":
        key = jax.random.fold_in(jax.random.key(0), learned.taken)
        value, head = search(
            lambda head: of(params.encoder._replace(head=head)), params.encoder.head, key
        )
        slope = jax.tree.map(jnp.zeros_like, params.encoder)._replace(head=head)
    else:
        value, slope = jax.value_and_grad(of)(params.encoder)
    slopes = Params(analogues.Params(row.slope[:-1], row.slope[-1]), slope)
    steps, moved = optimiser().update(slopes, learned.momenta, params)
    stepped = jax.tree.map(lambda one, step, rate: one - rate * step, params, steps, rates(params))
    stepped = stepped._replace(recall=bounded(stepped.recall))
    numbers = jax.tree.leaves((value, slopes, stepped))
    finite = jnp.stack([jnp.isfinite(one).all() for one in numbers]).all()
    judged, goes_back = judge(learned, params.encoder, value, of(learned.anchor))
    stepped = stepped._replace(encoder=chosen(goes_back, judged.anchor, stepped.encoder))
    moved = chosen(goes_back, optimiser().init(params), moved)
    params = chosen(finite, stepped, params)
    learned = chosen(finite, judged._replace(momenta=moved), learned)
    cache = attention.reproject(params.encoder, bank.cache)
    bank = bank._replace(cache=cache, slope=bank.slope.at[stream].set(0.0))
    return params, learned, bank, Report(value, finite & ~goes_back)


def rates(params: Params) -> Params:
    """How far each parameter steps."""
    return Params(
        jax.tree.map(lambda _: RECALL_RATE, params.recall),
        jax.tree.map(lambda _: ENCODER_RATE, params.encoder),
    )


def bounded(params: analogues.Params) -> analogues.Params:
    """Keep recall's penalties within reach of their first values."""
    return jax.tree.map(
        lambda one, first: jnp.clip(one, first - REACH, first + REACH),
        params,
        analogues.init_params(),
    )


def judge(
    learned: State,
    encoder: attention.Params,
    value: Float[Array, ""],
    anchors: Float[Array, ""],
) -> tuple[State, Bool[Array, ""]]:
    """Weigh an encoder against its anchor.

    Args:
        learned: What was found before.
        encoder: As it was judged.
        value: Its loss.
        anchors: The anchor's loss on the same moments.

    Returns:
        What is known now, with the encoder as the anchor if it is better; and whether it has to go
        back to the anchor.
    """
    steps = learned.steps + 1
    rate = jnp.maximum(1.0 / steps, 1.0 / JUDGED)
    usual = learned.usual + rate * (anchors - learned.usual)
    excess = learned.excess + rate * (value - anchors - learned.excess)
    enough = steps >= JUDGED
    better, worse = enough & (excess < 0), enough & (excess > WORSE * usual)
    anew = better | worse
    state = State(
        learned.momenta,
        chosen(better, encoder, learned.anchor),
        jnp.where(anew, 0.0, usual),
        jnp.where(anew, 0.0, excess),
        jnp.where(anew, 0, steps),
        learned.taken + 1,
    )
    return state, worse


def chosen(which: Bool[Array, ""], one: Tree, other: Tree) -> Tree:
    """The one tree of arrays, or the other."""
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)
