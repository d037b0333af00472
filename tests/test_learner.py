from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from adaptive import (
    analogues,
    attention,
    compression,
    delta,
    encoder,
    experts,
    learner,
    model,
    packed,
    ring,
)
from adaptive.settings import Level, Shape

SIZES = {"channels": 2, "horizon": 2, "memory": 512, "window": 6, "dim": 8, "heads": 2}
SHAPE = Shape(**SIZES, origins=8, encoder="attention")
DELTA = Shape(**SIZES, origins=8)
STREAMS, ONE = 2, jnp.int32(1)


empty = jax.jit(partial(model.bank, shape=SHAPE, streams=STREAMS))
reproject, anew = jax.jit(attention.reproject), jax.jit(model.anew)


def random_params(seed, shape=SHAPE):
    params = model.init_params(np.random.default_rng(seed), shape)
    head = np.random.default_rng(seed).normal(0, 0.3, params.encoder.head.shape)
    encoder = params.encoder._replace(head=jnp.asarray(head, jnp.float32))
    return params._replace(encoder=encoder)


def fed(params, samples, learnable=True, seed=0):
    """A bank in which stream 1 has inputs, and errors that are a function of them.

    Returns:
        The bank, the inputs [N, 4] and the errors [N, 2, 2], as written.
    """
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 2 * SHAPE.channels)).astype(np.float32)
    errors = rng.normal(size=(samples, SHAPE.horizon, SHAPE.channels)).astype(np.float32)
    if learnable:
        errors[1:] = 0.8 * np.tanh(inputs[1:, :2] - inputs[:-1, 2:])[:, None]
    kept = packed.init(samples, SHAPE.channels, SHAPE.horizon)
    for n, row in enumerate(errors):
        kept = push(kept, jnp.int32(n), jnp.asarray(row.T))
    errors = np.asarray(packed.read(kept, jnp.arange(samples)).swapaxes(1, 2))
    bank = empty(params)
    cache, memory = bank.cache, bank.memory
    whole = np.array(cache.inputs.rows)
    for n, row in enumerate(inputs):
        whole[1, :, n % cache.inputs.length] = row
    filled = ring.Ring(memory.errors.rows.at[1, :, :samples].set(kept.rows[0, :, :samples]))
    counts = jnp.array([-1, samples - 1], jnp.int32)
    cache = replace(cache, inputs=ring.Ring(jnp.asarray(whole)))
    cache = reproject(params.encoder, cache, counts)
    return (
        bank._replace(
            count=counts,
            cache=cache,
            memory=memory._replace(errors=filled),
        ),
        inputs,
        errors,
    )


def stepping(shape=SHAPE, objective="huber"):
    """A step on stream 1 of a bank."""

    @jax.jit
    def step(params, learned, bank):
        return learner.step(params, learned, ring.of_stream(bank, ONE), shape, objective)

    return step


step, searched = stepping(), stepping(objective="misses")
push = jax.jit(packed.push)
by_objective = {"huber": step, "misses": searched}
write = jax.jit(attention.write)
encode = jax.jit(partial(attention.encode, window=SHAPE.window))
loss = jax.jit(partial(learner.loss, shape=SHAPE))


def taken_in(params, row):
    """A cache of delta layers that has seen what a row of the other kind has."""
    cache = encoder.init_cache(params.encoder, DELTA)
    write = jax.jit(delta.write)
    for n in range(int(row.count) + 1):
        cache, _ = write(
            params.encoder, cache, jnp.int32(n), ring.read(row.cache.inputs, jnp.int32(n))
        )
    return cache


@pytest.mark.slow
def test_the_loss_is_the_huber_loss_after_the_newest_moments_that_have_matured():
    params = random_params(0)
    for samples in (5, 40):  # fewer than there are origins, and many
        bank, inputs, errors = fed(params, samples)
        got = float(loss(params.encoder, ring.of_stream(bank, jnp.int32(1))))
        matured = range(max(0, samples - SHAPE.horizon - SHAPE.origins), samples - SHAPE.horizon)
        parts = []
        for n in matured:
            cache = attention.init_cache(params.encoder, attention.Form(SHAPE.window), 16)
            for k, row in enumerate(inputs[: n + 1]):
                if k > n - SHAPE.window:
                    cache, token = write(params.encoder, cache, jnp.int32(k), row)
            out, _ = encode(params.encoder, cache, token, jnp.int32(n))
            off = np.abs(np.asarray(out, np.float64) - errors[n].ravel())
            most = learner.HUBER
            parts.append(np.where(off < most, 0.5 * off**2, most * (off - 0.5 * most)))
        assert got == pytest.approx(np.mean(parts), rel=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, DELTA])
def test_the_gradient_is_the_finite_difference_of_the_loss(shape):
    params = random_params(1, shape)
    row = ring.of_stream(fed(random_params(1), 40, learnable=False)[0], ONE)
    if shape is DELTA:
        row = row._replace(cache=taken_in(params, row))
    loss = jax.jit(partial(learner.loss, shape=shape))
    slope = jax.jit(jax.grad(partial(learner.loss, shape=shape)))(params.encoder, row)
    rng, norm = np.random.default_rng(2), np.linalg.norm
    leaves, form = jax.tree.flatten(params.encoder)
    for k, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(slope), strict=True)):
        leaf, gradient = (np.asarray(a, np.float64) for a in (leaf, gradient))
        # Along the gradient, where the difference is largest beside float32's rounding, and
        # along another direction.
        for along in (gradient, gradient + rng.normal(0, norm(gradient) / 4, gradient.shape)):
            along = along / norm(along)
            size = 0.02 * max(norm(leaf), 1.0)
            ends = [
                float(loss(jax.tree.unflatten(form, [*leaves[:k], moved, *leaves[k + 1 :]]), row))
                for moved in (jnp.float32(leaf + sign * size * along) for sign in (1, -1))
            ]
            wanted = (ends[0] - ends[1]) / (2 * size)
            assert (gradient * along).sum() == pytest.approx(wanted, rel=0.03, abs=2e-5), k


@pytest.mark.slow
def test_learning_lowers_the_loss_where_there_is_something_to_learn():
    params = random_params(3)
    learned = learner.init(params, SHAPE)
    before, after = [], []
    banks = [fed(params, 40, seed=k)[0] for k in range(25)]
    for k in range(200):
        # A step looks at inputs and errors alone, so keys of other parameters do no harm.
        bank = banks[k % 25]
        params, learned, report = step(params, learned, bank)
        assert bool(report.landed)
        (before if k < 25 else after).append(float(report.loss))
    assert np.mean(after[-25:]) < 0.7 * np.mean(before)


def test_a_step_of_gathered_gradients_is_that_of_their_mean():
    params = random_params(8)
    learned = learner.init(params, SHAPE)
    banks = [fed(params, 40, seed=k)[0] for k in range(3)]
    banks = [b._replace(slope=b.slope.at[1].set(k + 1.0)) for k, b in enumerate(banks)]
    rows = [ring.of_stream(bank, jnp.int32(1)) for bank in banks]
    gradient = jax.jit(partial(learner.gradient, shape=SHAPE, objective="huber"))
    slopes = [gradient(params, learned, row)[1] for row in rows]
    gather = jax.jit(partial(learner.gather, shape=SHAPE))
    for row in rows[:2]:
        learned, report = gather(params, learned, row)
        assert bool(report.landed)
    assert int(learned.waiting) == 2
    # One that is not finite is left out.
    spoilt, report = gather(params, learned, rows[2]._replace(slope=rows[2].slope * np.nan))
    assert not bool(report.landed)
    for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(a, b)
    moved, learned, report = step(params, learned, banks[2])
    assert bool(report.landed)
    mean = sum(learner.flat(one) for one in slopes) / 3
    optimiser = learner.optimiser()
    steps, _ = optimiser.update(mean, optimiser.init(mean))
    numbers, tree = ravel_pytree(params)
    wanted = tree(numbers - learner.rates(params) * steps)
    # Heads and hidden units may change places.
    for got, want in ((moved.recall, wanted.recall), (moved.encoder, wanted.encoder)):
        order = [np.sort(np.asarray(a), axis=None) for a in jax.tree.leaves(got)]
        other = [np.sort(np.asarray(a), axis=None) for a in jax.tree.leaves(want)]
        for a, b in zip(order, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert int(learned.waiting) == 0
    assert not any(np.any(np.asarray(a)) for a in jax.tree.leaves(learned.gathered))


def test_after_a_step_all_caches_are_as_if_made_with_the_new_parameters():
    params = random_params(4)
    bank, inputs, _ = fed(params, 40)
    learned = learner.init(params, SHAPE)
    bank = bank._replace(slope=jnp.ones_like(bank.slope))
    moved, _, report = step(params, learned, bank)
    after = anew(moved, bank)
    assert bool(report.landed)
    # Heads and hidden units may change places.
    change = apart(*((one.recall, by_norm(one.encoder)) for one in (moved, params)))
    assert 0 < change < 1.0  # a bounded step
    newest = ring.of_stream(after, jnp.int32(1)).cache
    encoder = moved.encoder
    keys, values = attention.project(
        encoder.layers[0], jnp.asarray(inputs[-SHAPE.window :]) @ encoder.embed
    )
    rings = newest.keys[0], newest.values[0]
    got = [ring.last(one, jnp.int32(39), SHAPE.window) for one in rings]
    np.testing.assert_allclose(got[0], keys, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], values, rtol=1e-4, atol=1e-5)
    # Recall moves against its slopes.
    assert (np.asarray(moved.recall.sharpness) < np.asarray(params.recall.sharpness)).all()
    assert float(moved.recall.age) < float(params.recall.age)


def by_norm(encoder):
    """An encoder with its last layer's heads and hidden units in the order of what they say."""
    layer = encoder.layers[-1]
    heads, units = (
        jnp.argsort(jnp.sum(a.reshape(len(a), -1) ** 2, axis=1)) for a in (layer.out, layer.down)
    )
    return compression.ordered(encoder, heads, units)


def apart(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(((np.asarray(x) - np.asarray(y)) ** 2).sum() for x, y in pairs)))


@pytest.mark.parametrize("objective", ["huber", "misses"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["slope", "inputs"])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_lands(poison, where, objective):
    step = by_objective[objective]
    params = random_params(5)
    learned = learner.init(params, SHAPE)
    clean, _, _ = fed(params, 40)
    bank = clean
    if where == "slope":
        bank = bank._replace(slope=bank.slope.at[1, 0].set(poison))
    else:
        length = bank.cache.inputs.length
        rows = bank.cache.inputs.rows.at[1, :, 36 % length].set(poison)
        bank = bank._replace(cache=replace(bank.cache, inputs=ring.Ring(rows)))
    stayed, kept, report = step(params, learned, bank)
    assert not bool(report.landed)
    for a, b in zip(
        jax.tree.leaves((stayed, kept)), jax.tree.leaves((params, learned)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert bool(step(stayed, kept, clean)[2].landed)


def test_an_encoder_that_is_clearly_worse_goes_back_and_one_that_is_better_becomes_the_anchor():
    good, bad = random_params(6), random_params(7)
    good = good._replace(encoder=good.encoder._replace(head=0 * good.encoder.head))
    banks = [fed(good, 40, learnable=False, seed=k)[0] for k in range(8)]
    # On noise nothing can be foreseen: silence is better than what a random encoder says.
    for begun, anchor, goes_back in ((bad, good, True), (good, bad, False)):
        params, learned = begun, learner.init(anchor, SHAPE)
        for k in range(learner.JUDGED):
            # Each time as it was, or it would learn silence.
            params = begun
            params, learned, report = step(params, learned, banks[k % 8])
            last = k == learner.JUDGED - 1
            assert bool(report.landed) == (not (goes_back and last))
        anchor = ravel_pytree(good.encoder)[1](learned.anchor)
        assert apart(by_norm(anchor), by_norm(good.encoder)) == 0
        assert int(learned.steps) == 0
        if goes_back:
            assert apart(by_norm(params.encoder), by_norm(good.encoder)) == 0
            assert apart(learned.momenta, learner.init(good, SHAPE).momenta) == 0


def test_a_judgement_takes_its_time():
    good, bad = random_params(6), random_params(7)
    bank = fed(good, 40, learnable=False)[0]
    params, learned = bad, learner.init(good, SHAPE)
    for _ in range(learner.JUDGED - 1):
        params, learned, report = step(params, learned, bank)
        assert bool(report.landed)
    assert int(learned.steps) == learner.JUDGED - 1


def test_penalties_stay_within_reach_of_their_first_values():
    params = random_params(8)
    far = params.recall._replace(sharpness=params.recall.sharpness + 50, age=params.recall.age - 50)
    got = learner.bounded(far)
    first = analogues.init_params()
    np.testing.assert_allclose(got.sharpness - first.sharpness, learner.REACH, rtol=1e-5)
    assert float(got.age - first.age) == pytest.approx(-learner.REACH)


LEVEL = Level("recall", 512)


@jax.jit
def lived(params, values):
    """Take a stream through the model; return its end and what was forecast on the way."""

    def one(state, x):
        state, _ = model.step(params, state, x, jnp.ones_like(x), LEVEL)
        usual = jnp.sqrt(jnp.mean(state.loss[model.TRUNK], axis=1)) + model.LEAST_ERROR
        return state, (state.made[:, model.RECALL], state.glitch.mean, state.glitch.variance, usual)

    return lax.scan(one, model.init(params, SHAPE), values)


def huber_of_recall(params, values):
    """What recall left of the truth, in NumPy and float64: the sum over samples [variances].

    Steps count by what the trunk usually leaves at all of them, against at each.
    """
    found = (np.asarray(a, np.float64) for a in lived(params, values)[1])
    made, mean, variance, usual = found
    share = usual.mean(axis=1, keepdims=True) / usual
    scale = np.sqrt(variance) + 1e-6 * np.abs(mean) + 1e-12
    total = 0.0
    for h in range(1, SHAPE.horizon + 1):
        off = np.abs((values[h:] - made[:-h, h - 1]) / scale[h:])
        off = np.minimum(off, experts.CLIP)
        huber = np.where(off < 1, 0.5 * off**2, off - 0.5)
        total += (share[h:, [h - 1]] * huber).sum()
    return total / (SHAPE.horizon * SHAPE.channels)


@pytest.mark.slow
def test_the_slopes_that_recall_gathers_are_finite_differences_of_its_loss():
    rng = np.random.default_rng(6)
    patterns = rng.normal(size=(3, 30, SHAPE.channels))
    values = np.concatenate([patterns[k] for k in rng.integers(0, 3, 15)]).astype(np.float32)
    params = random_params(7)
    # A penalty on age that matters within so few samples.
    start = np.array([-0.5, -1.2, -0.1, -1.0, 2.0])

    def at(theta):
        kept = analogues.Params(jnp.asarray(theta[:-1], jnp.float32), jnp.float32(theta[-1]))
        return params._replace(recall=kept)

    state, _ = lived(at(start), values)
    wanted = []
    for change in 0.02 * np.eye(len(start)):
        ends = [huber_of_recall(at(start + sign * change), values) for sign in (1, -1)]
        wanted.append((ends[0] - ends[1]) / 0.04)
    # Slopes are in deviations of when the forecast was made, which drift a little.
    most = 0.005 * np.linalg.norm(wanted)
    np.testing.assert_allclose(state.slope, wanted, rtol=0.08, atol=most)


def test_random_search_points_where_the_blurred_function_grows():
    found = jax.jit(partial(learner.search, lambda w: jnp.sum((w - 1.0) ** 2)))
    at, keys = jnp.array([0.0, 3.0, 1.0]), jax.random.split(jax.random.key(1), 300)
    values, slopes = zip(*(found(at, key) for key in keys), strict=True)
    assert {float(value) for value in values} == {5.0}
    # Without bias: many searches together are the gradient.
    np.testing.assert_allclose(np.mean(slopes, axis=0), [-2.0, 4.0, 0.0], atol=0.25)


def test_what_has_no_gradient_is_learned_by_random_search():
    params = random_params(3)
    params = params._replace(
        encoder=params.encoder._replace(head=jnp.zeros_like(params.encoder.head))
    )
    learned, (bank, _, _) = learner.init(params, SHAPE), fed(params, 60)
    loss = jnp.full_like(bank.loss, 0.04)  # usual errors of 0.2
    bank = bank._replace(loss=loss)
    shares, first = [], params.encoder
    for _ in range(400):
        params, learned, report = searched(params, learned, bank)
        shares.append(float(report.loss))
    assert 0 < shares[0] <= 1
    assert np.mean(shares[-20:]) < 0.9 * shares[0]
    assert int(learned.taken) == 400
    assert apart(first._replace(head=params.encoder.head), params.encoder) == 0
    assert apart(first, params.encoder) > 0


@pytest.mark.parametrize(
    "change", [{}, {"layers": 2}, {"decoder": True}, {"patch": 2}, {"replayed": 4}]
)
@pytest.mark.parametrize("shape", [SHAPE, DELTA])
def test_steps_of_other_encoders_lower_their_loss(shape, change):
    shape = shape._replace(**change)
    params = model.init_params(np.random.default_rng(3), shape)
    learned, bank = learner.init(params, shape), lived_in(params, shape)
    step, losses = jax.jit(partial(learner.step, shape=shape)), []
    row = ring.of_stream(bank, jnp.int32(0))
    for _ in range(150):
        params, learned, report = step(params, learned, row)
        assert bool(report.landed)
        losses.append(float(report.loss))
    assert losses[-1] < 0.8 * losses[0]


def lived_in(params, shape):
    """A bank of one stream whose trunk cannot foresee what is no line."""
    x = np.array([0.3, 0.6])
    values = [x := 3.9 * x * (1 - x) for _ in range(120)]
    level = Level("trunk")

    def one(bank, x):
        state = ring.of_stream(bank, jnp.int32(0))
        state, _ = model.step(params, state, x, jnp.ones_like(x), level)
        return ring.with_stream(bank, jnp.int32(0), state), None

    bank = model.bank(params, shape, 1)
    return jax.jit(partial(lax.scan, one))(bank, jnp.asarray(values, jnp.float32))[0]


def test_older_moments_are_seen_as_they_were():
    shape = SHAPE._replace(replayed=5)
    params = random_params(2)
    bank = lived_in(params, shape)
    row = ring.of_stream(bank, jnp.int32(0))
    # Where mean and scale hardly move any more, what is replayed is what was seen.
    newest = row.count - shape.horizon
    inputs = ring.last(row.cache.inputs, newest, 12)
    again = learner.remembered(row, newest - jnp.arange(11, -1, -1))
    np.testing.assert_allclose(again, inputs, atol=0.2)
    assert np.corrcoef(np.ravel(again), np.ravel(inputs))[0, 1] > 0.99
    got = learner.replay(params.encoder, row, shape, jnp.int32(3))
    assert np.isfinite(float(got))
    assert float(got) > 0


def test_what_eight_bits_hold_is_served_and_small_steps_still_add_up():
    shape = SHAPE._replace(int8=True)
    params = random_params(3)
    params = params._replace(encoder=compression.rounded(params.encoder))
    learned, bank = learner.init(params, shape), fed(params, 60)[0]
    step, first = stepping(shape), params.encoder
    for _ in range(30):
        params, learned, _ = step(params, learned, bank)
        whole = ravel_pytree(params.encoder)[1](learned.whole)
        assert apart(params.encoder, compression.rounded(whole)) < 1e-5
        assert apart(params.encoder, compression.rounded(params.encoder)) < 1e-5
    assert apart(by_norm(params.encoder), by_norm(first)) > 0.1
