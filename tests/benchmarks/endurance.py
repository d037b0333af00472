"""Whether the forecasters stay sound in single precision over ten million samples.

    python tests/benchmarks/endurance.py [--samples 10000000]

One stream of hard stretches, over and over: a season and noise, the bare season (lags that are
linear in each other), a constant (nothing is excited), Cauchy noise, and spikes. After each million
samples is printed whether all state is finite, the extreme variances of the weights, which the
ridge keeps near or below `experts.LARGEST`, and the error one step ahead on the newest stretch of
season and noise, in units of the noise that nobody can foresee, beside the same for forecasters
that have just begun: what wears off would show there.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from adaptive import drift, experts, runtime, seasons

STRETCH, SEASON, NOISE = 10_000, 24, 0.3  # [samples], [samples], deviation
STRETCHES = 5


def stretches(seed):
    """[STRETCHES * STRETCH, 1] one round."""
    rng, n = np.random.default_rng(seed), np.arange(STRETCH)
    wave = np.sin(2 * np.pi * n / SEASON) + 0.5 * np.sin(4 * np.pi * n / SEASON)
    noise = NOISE * rng.normal(size=(2, STRETCH))
    spikes = np.where(rng.random(STRETCH) < 0.01, 1e6, 0.0)
    cauchy = rng.standard_cauchy(STRETCH)
    parts = (wave + noise[0], wave, np.full(STRETCH, 3.0), cauchy, wave + noise[1] + spikes)
    return np.concatenate(parts)[:, None].astype(np.float32)


@jax.jit
def lived(state, before, values):
    """Take a round through the trunk; the mean squared error of the best of its regressions.

    Of the second half of the first stretch: season and noise, after the spikes of the last round.
    """
    reach = experts.reach(1)
    held = jnp.concatenate((before[-reach:], values))

    def one(state, n):
        window = jax.lax.dynamic_slice_in_dim(held, n + 1, reach)
        season = seasons.init(32, 1)._replace(
            lag=jnp.int32(SEASON), phase=(n % SEASON) / jnp.float32(SEASON)
        )
        recent = experts.Recent(
            window, jnp.zeros(1), jnp.ones(1), season, drift.State(jnp.float32(0), drift.NEVER)
        )
        known = jnp.ones((1, 1))
        state = experts.step(state, n, recent, window[-2:-1], known)
        nothing = jnp.zeros((1, 1))
        ahead = experts.forecast(state, recent, nothing, jnp.zeros((1, 2, 1)))[-3:, 0, 0]
        target = held[jnp.minimum(n + reach + 1, len(held) - 1), 0]
        return state, (ahead - target) ** 2

    state, error = jax.lax.scan(one, state, jnp.arange(len(values)))
    return state, jnp.min(jnp.mean(error[STRETCH // 2 : STRETCH - 1], axis=0))


def main():
    """Print a line for each million samples."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--samples", type=int, default=10_000_000)
    args = arguments.parse_args()
    runtime.prepare()
    start = experts.init(1, 1)
    state, before, rounds = start, stretches(0), STRETCH * STRETCHES
    for number in range(1, args.samples // rounds + 1):
        values = stretches(number)
        state, error = lived(state, before, values)
        before = values
        if number * rounds % 1_000_000 == 0 or number * rounds >= args.samples:
            finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
            variances = [(np.asarray(one.root, float) ** 2).sum(axis=1) for one in state]
            fresh = lived(start, before, values)[1]
            print(
                f"{number * rounds:>10,} samples: all finite: {finite}; variances "
                f"{min(v.min() for v in variances):.1e} to {max(v.max() for v in variances):.1f}; "
                f"error {float(error) / NOISE**2:.3f}, of fresh ones {float(fresh) / NOISE**2:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
