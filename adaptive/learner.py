"""Online gradient updates of the attention parameters, from matured feedback, in a safe shell.

A step learns from one stream: the encoder from the errors that the trunk made at the newest
moments whose whole horizon is known, recall from the slopes that were gathered since its last
step. Steps are bounded (Huber loss, clipped norm, Adam), a step that is not finite never lands, and
recall's penalties stay within a factor of their first values. What caches keep of the parameters
has to be made anew afterwards. In a large bank a step is that of the mean gradient of several
streams, gathered one after another.

What has no gradient is made small by random search: `misses`, the share of errors larger than the
trunk's usual one, which is what a limit cares for. Then the encoder's readout moves by what pairs
of opposite random steps tell of the objective; Adam, bounds and judgement are the same.

What is as large as the parameters is kept side by side in one array: each array of a call, and each
operation on one, costs microseconds.

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
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from adaptive import analogues, compression, encoder, glitch, layers, model, packed, ring
from adaptive.model import Params
from adaptive.settings import Shape

Tree = TypeVar("Tree")  # of arrays

ENCODER_RATE = 6e-4  # of a step
RECALL_RATE = 0.024  # of the logarithm of a penalty
HUBER = 4.0  # [standard deviations] beyond it errors count linearly
LARGEST_STEP = 1.0  # norm of a gradient; a longer one is cut
REACH = 4.0  # that the logarithm of a penalty may move: a factor of 55
JUDGED = 64  # steps that a judgement takes, at least, and the memory of its means
PAIRS, SIZE = 16, 0.05  # of random steps, and their deviation
GOLDEN = 2654435769  # 2^32 over the golden ratio
SHARE = 16  # streams: in a larger bank a step waits for one more gradient for each so many
WORSE = 0.02  # relative: an encoder that is worse than its anchor by so much goes back


class State(NamedTuple):
    """What a learner remembers beside the parameters."""

    momenta: optax.OptState  # of all parameters
    whole: Float[Array, " encoder"] | None  # where eight bits are served: before they were rounded
    anchor: Float[Array, " encoder"]  # not rounded
    importance: compression.Importance
    usual: Float[Array, ""]  # discounted mean of the anchor's loss
    excess: Float[Array, ""]  # and of what the encoder's was more
    steps: Int[Array, ""]  # since the anchor and the encoder were the same
    taken: Int[Array, ""]  # steps in all; each draws other numbers
    gathered: Float[Array, " numbers"]  # sum of gradients since the last step
    waiting: Int[Array, ""]  # how many


class Report(NamedTuple):
    """What became of a step."""

    loss: Float[Array, ""]  # of the encoder, before the step: [variances], or a share
    landed: Bool[Array, ""]  # else it was not finite and changed nothing, or the encoder went back


def optimiser() -> optax.GradientTransformation:
    """Adam behind a cut at `LARGEST_STEP`; how far to step is yet to be said."""
    return optax.chain(optax.clip_by_global_norm(LARGEST_STEP), optax.scale_by_adam())


def flat(params: Any) -> Float[Array, " numbers"]:
    """Parameters in one array."""
    return ravel_pytree(params)[0]


def init(params: Params, shape: Shape) -> State:
    """Nothing learned: the parameters are their own anchor."""
    zero = jnp.float32(0.0)
    none = jnp.int32(0)
    serves = flat(params.encoder)
    whole = serves if shape.int8 else None
    known = compression.init(params.encoder)
    nothing = jnp.zeros_like(flat(params))
    first = optimiser().init(nothing)
    return State(first, whole, serves, known, zero, zero, none, none, nothing, none)


def loss(
    params: layers.Params, state: model.State, shape: Shape, objective: str = "huber"
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
    matured = encoder.of(state.cache).matured
    got, moments, known = matured(params, state.cache, newest, shape.origins)
    return lost(state, moments, got, known, objective)


def lost(
    state: model.State,
    moments: Int[Array, " moments"],
    got: Float[Array, "moments outputs"],
    known: Float[Array, " moments"],
    objective: str,
) -> Float[Array, ""]:
    """Loss of corrections against the trunk's errors after moments of the memory."""
    target = packed.read(state.memory.errors, moments).swapaxes(1, 2)
    error = got - target.reshape(got.shape)
    if objective == "misses":
        missed = jnp.abs(error) > jnp.sqrt(state.loss[model.TRUNK]).ravel()
        of = jnp.where(jnp.isfinite(error), missed, jnp.nan)
    else:
        of = optax.huber_loss(error, delta=HUBER)
    return jnp.sum(known[:, None] * of) / (jnp.maximum(jnp.sum(known), 1.0) * got.shape[1])


def replay(
    params: layers.Params, state: model.State, shape: Shape, taken: Int[Array, ""]
) -> Float[Array, ""]:
    """Loss against the trunk's errors after older moments, spread over all that are remembered.

    Args:
        params: The encoder.
        state: The stream.
        shape: Of the model; `replayed` moments are learned from.
        taken: Gradient steps so far; each looks at other moments.
    """
    kind = encoder.of(state.cache)
    context = kind.context(shape.layers, state.cache.form)
    oldest = jnp.minimum(state.count, shape.memory - context - 1)
    # Multiples of the golden ratio spread evenly, and need no seconds to compile.
    turns = (taken * shape.replayed + jnp.arange(shape.replayed)).astype(jnp.uint32) * jnp.uint32(
        GOLDEN
    )
    share = (turns >> 8).astype(jnp.float32) / 2**24
    ages = shape.horizon + jnp.floor(share * (oldest + 1 - shape.horizon)).astype(jnp.int32)
    moments = state.count - ages
    rows = moments[:, None] - jnp.arange(context, -1, -1)
    inputs = remembered(state, rows)
    seen = (rows >= 0).astype(jnp.float32)
    encode = partial(kind.encode_window, params, form=state.cache.form)
    got = jax.vmap(lambda inputs, seen: encode(inputs, seen)[0])(inputs, seen)
    known = ((oldest >= shape.horizon) & (moments >= 0)).astype(jnp.float32)
    return lost(state, moments, got, known, "huber")


def remembered(state: model.State, rows: Int[Array, "*rows"]) -> Float[Array, "*rows inputs"]:
    """What the encoder saw of samples, made of what the forecasters saw, in today's units."""
    mean, scale = state.glitch.mean, glitch.scale(state.glitch)
    left = packed.read(state.memory.errors, rows - 1)[..., 0]  # of all channels, at one step
    return model.tokens(ring.read(state.sound, rows), left, mean, scale)


def search(
    f: Callable[[Array], Float[Array, ""]], at: Array, key: Array
) -> tuple[Float[Array, ""], Array]:
    """Value of a function, and the direction in which it grows, by pairs of opposite steps.

    The direction is that of the gradient of the function when it is blurred by such steps.
    """
    steps = SIZE * jax.random.normal(key, (PAIRS, *at.shape))
    ahead, back = jax.vmap(f)(at + steps), jax.vmap(f)(at - steps)
    return f(at), jnp.tensordot(ahead - back, steps, axes=1) / (2 * PAIRS * SIZE**2)


def gradient(
    params: Params, learned: State, row: model.State, shape: Shape, objective: str
) -> tuple[Float[Array, ""], Params]:
    """Loss of the encoder on the feedback of one stream, and the gradients of all parameters."""
    of = partial(loss, state=row, shape=shape, objective=objective)
    if objective == "misses":
        key = jax.random.fold_in(jax.random.key(0), learned.taken)
        value, head = search(
            lambda head: of(params.encoder._replace(head=head)), params.encoder.head, key
        )
        slope = jax.tree.map(jnp.zeros_like, params.encoder)._replace(head=head)
    else:
        value, slope = jax.value_and_grad(of)(params.encoder)
        if shape.replayed:
            older = jax.grad(replay)(params.encoder, row, shape, learned.taken)
            slope = jax.tree.map(lambda new, old: (new + old) / 2, slope, older)
    return value, Params(analogues.Params(row.slope[:-1], row.slope[-1]), slope)


def gather(
    params: Params, learned: State, row: model.State, shape: Shape, objective: str = "huber"
) -> tuple[State, Report]:
    """Keep the gradient of one stream for the next step.

    Args:
        params: Shared by the bank.
        learned: From `init`, or the step before.
        row: The stream.
        shape: Of the model, static.
        objective: Static; see `loss`.

    Returns:
        The learner, and whether the gradient was finite; else it is left out. What the stream has
        gathered in `slope` is spent.
    """
    value, slopes = gradient(params, learned, row, shape, objective)
    slopes = flat(slopes)
    finite = jnp.isfinite(slopes).all()
    learned = learned._replace(
        gathered=learned.gathered + jnp.where(finite, slopes, 0.0),
        waiting=learned.waiting + finite,
    )
    return learned, Report(value, finite)


def step(
    params: Params, learned: State, row: model.State, shape: Shape, objective: str = "huber"
) -> tuple[Params, State, Report]:
    """Take one step, along the gradient of one stream and what has been gathered of others.

    Args:
        params: Shared by the bank.
        learned: From `init`, or the step before.
        row: The stream.
        shape: Of the model, static.
        objective: Static; see `loss`.

    Returns:
        Parameters and learner after the step, and a report. What the stream has gathered in `slope`
        is spent, and caches are of the old parameters: `model.anew`.
    """
    of = partial(loss, state=row, shape=shape, objective=objective)
    numbers, tree = ravel_pytree(params)
    encoders = ravel_pytree(params.encoder)[1]
    value, slopes = gradient(params, learned, row, shape, objective)
    one = (flat(slopes) + learned.gathered) / (learned.waiting + 1)
    learned = learned._replace(
        gathered=jnp.zeros_like(numbers), waiting=jnp.zeros_like(learned.waiting)
    )
    if learned.whole is not None:
        numbers = flat(params._replace(encoder=encoders(learned.whole)))
    steps, moved = optimiser().update(one, learned.momenta)
    stepped = numbers - rates(params) * jnp.asarray(steps)
    finite = jnp.isfinite(value) & jnp.isfinite(one).all() & jnp.isfinite(stepped).all()
    stepped = tree(stepped)
    served = compression.rounded if shape.int8 else lambda unchanged: unchanged
    anchors = of(served(encoders(learned.anchor)))
    judged, goes_back = judge(learned, flat(tree(numbers).encoder), value, anchors)
    stepped = Params(
        bounded(stepped.recall),
        encoders(jnp.where(goes_back, judged.anchor, flat(stepped.encoder))),
    )
    moved = chosen(goes_back, optimiser().init(numbers), moved)

    # All that has the form of the encoder keeps its order.
    importance, *order = compression.weigh(learned.importance, params.encoder, tree(one).encoder)

    def ordered(one: Params) -> Params:
        return one._replace(encoder=compression.ordered(one.encoder, *order))

    stepped = ordered(stepped)
    judged = judged._replace(
        momenta=jax.tree.map(lambda a: flat(ordered(tree(a))) if a.ndim else a, moved),
        anchor=flat(compression.ordered(encoders(judged.anchor), *order)),
        importance=importance,
    )
    if shape.int8:
        judged = judged._replace(whole=flat(stepped.encoder))
        stepped = stepped._replace(encoder=served(stepped.encoder))
    stepped = jnp.where(finite, flat(stepped), flat(params))
    return tree(stepped), chosen(finite, judged, learned), Report(value, finite & ~goes_back)


def rates(params: Params) -> Float[Array, " numbers"]:
    """How far each parameter steps."""
    sizes = (flat(one).size for one in params)
    each = zip((RECALL_RATE, ENCODER_RATE), sizes, strict=True)
    return jnp.concatenate([jnp.full(size, rate) for rate, size in each])


def bounded(params: analogues.Params) -> analogues.Params:
    """Keep recall's penalties within reach of their first values."""
    return jax.tree.map(
        lambda one, first: jnp.clip(one, first - REACH, first + REACH),
        params,
        analogues.init_params(),
    )


def judge(
    learned: State,
    served: Float[Array, " encoder"],
    value: Float[Array, ""],
    anchors: Float[Array, ""],
) -> tuple[State, Bool[Array, ""]]:
    """Weigh an encoder against its anchor.

    Args:
        learned: What was found before.
        served: The encoder, as it was judged.
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
    state = learned._replace(
        anchor=jnp.where(better, served, learned.anchor),
        usual=jnp.where(anew, 0.0, usual),
        excess=jnp.where(anew, 0.0, excess),
        steps=jnp.where(anew, 0, steps),
        taken=learned.taken + 1,
    )
    return state, worse


def chosen(which: Bool[Array, ""], one: Tree, other: Tree) -> Tree:
    """The one tree of arrays, or the other."""
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)
