"""The plainest recall for forecasts: attention over what a pool of linear forecasters left.

    python tests/benchmarks/recalled.py ETTh1.csv [--steps 1 24 96]

The mean squared errors over the first steps of the longest horizon.

The forecasts are those of `pool.py`. Keys are all past moments of the same time of day, values what
the pool got wrong after them, as far as that is known. Four heads compare with now

    the pool's own forecast less the last day's mean,   the last 12 rows,
    the last two days,                     the newest 12 one-step errors of all channels,

each by softmax of -(mean squared distance) / temperature - age / memory; a ridge regression for
each step, discounted, learns from matured errors how far each head counts. Temperatures and
memories are fixed. Nothing of it is the package's but the reading of files: its recall grew out
of this.
"""

import argparse
from pathlib import Path

import numpy as np
from pool import FIRST, LAST, RIDGES, linear, mixed, naive, scaled

EARLY = 600  # the first row of an hourly table that something is remembered from
TEMPERATURE = (0.15, 0.3, 0.3, 0.3)
MEMORY = (200.0, 200.0, 1000.0, 200.0)  # [days]
SHORT, DAYS = 12, 2  # rows, days
RIDGE, DISCOUNT = 10.0, 0.9995


def keys(z, pool, day):
    """What each head compares: [rows, channels, numbers], NaN where it is not known."""
    rows, horizon, channels = pool.shape
    level = np.full(z.shape, np.nan)
    level[day - 1 :] = np.lib.stride_tricks.sliding_window_view(z, day, axis=0).mean(axis=-1)
    path = (pool - level[:, None]).transpose(0, 2, 1)
    errors = np.full(z.shape, np.nan)
    errors[1:] = z[1:] - pool[:-1, 0]

    def newest(values, many):
        out = np.full((rows, channels, many), np.nan, np.float32)
        out[many - 1 :] = np.lib.stride_tricks.sliding_window_view(values, many, axis=0)
        return out

    together = newest(errors, SHORT).reshape(rows, 1, -1)
    joint = np.repeat(together, channels, axis=1)
    return [path.astype(np.float32), newest(z, SHORT), newest(z, DAYS * day), joint]


def heads(z, pool, day, early):
    """[rows, heads, horizon, channels] what each head recalls, zero where nothing is."""
    rows, horizon, channels = pool.shape
    compared, steps = keys(z, pool, day), np.arange(1, horizon + 1)
    left = np.full(pool.shape, np.nan, np.float32)
    for origin in range(early, rows - 1):
        known = min(horizon, rows - 1 - origin)
        left[origin, :known] = z[origin + 1 : origin + 1 + known] - pool[origin, :known]
    out = np.zeros((rows, len(compared), horizon, channels), np.float32)
    for origin in range(early + day, rows):
        past = np.arange(origin - day, early - 1, -day)
        seen = past[:, None] + steps <= origin
        values = np.where(seen[..., None], left[past], 0.0)
        for head, key in enumerate(compared):
            apart = ((key[past] - key[origin]) ** 2).mean(axis=2)  # (moments, channels)
            ages = (origin - past)[:, None] / day
            logit = -apart / TEMPERATURE[head] - ages / MEMORY[head]
            logit = np.where(np.isfinite(logit), logit, -np.inf)
            weight = np.exp(logit - np.maximum(logit.max(axis=0), -1e9))
            total = np.einsum("nh,nc->hc", seen, weight)
            mean = np.einsum("nc,nhc->hc", weight, values)
            out[origin, head] = np.where(total > 1e-9, mean / np.maximum(total, 1e-9), 0.0)
    return out


def corrected(z, pool, recalled, early):
    """[rows, horizon, channels] the pool's forecasts with what the heads recall."""
    rows, many, horizon, _ = recalled.shape
    inner = np.tile(RIDGE * np.eye(many), (horizon, 1, 1))
    cross = np.zeros((horizon, many))
    out = np.array(pool)
    for origin in range(early, rows):
        gain = np.linalg.solve(inner, cross[..., None])[..., 0]
        out[origin] += np.einsum("hk,khc->hc", gain, recalled[origin])
        for step in range(1, horizon + 1):  # what is known now of each step
            made = origin - step
            if made >= early:
                x, y = recalled[made, :, step - 1], z[origin] - pool[made, step - 1]
                keep, unit = DISCOUNT, RIDGE * (1 - DISCOUNT) * np.eye(many)
                inner[step - 1] = keep * inner[step - 1] + x @ x.T + unit
                cross[step - 1] = keep * cross[step - 1] + x @ y
    return out


def main():
    """Print the mean squared errors of the pool, and with recall."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("input", type=Path)
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 24, 96])
    args = arguments.parse_args()
    z, times = scaled(args.input)
    first, last, day, early = FIRST * times, LAST * times, 24 * times, EARLY * times
    horizon = max(args.steps)
    experts = [linear(z, horizon, *how, day, early) for how in RIDGES[times]]
    pool = mixed(z, [*experts, *naive(z, horizon, day)], early)
    better = corrected(z, pool, heads(z, pool, day, early), early)
    origins = np.arange(first - 1, last - horizon)
    truth = z[origins[:, None] + np.arange(1, horizon + 1)]
    plain, recalled = (((made[origins] - truth) ** 2).mean(axis=(0, 2)) for made in (pool, better))
    for step in args.steps:
        both = plain[:step].mean(), recalled[:step].mean()
        print(f"{step:3} steps: pool {both[0]:.4f}, with recall {both[1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
