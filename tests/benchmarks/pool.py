"""A pool of linear forecasters that learn online: what forecasts are compared with.

    python tests/benchmarks/pool.py ETTh1.csv [--steps 1 24 48 96]

Nothing but linear algebra, in NumPy: ridge regressions on the last values less the newest, with
weights that all channels share, some of which forget, refitted once a day from samples whose whole
horizon is known; beside them persistence, and the values a day before. They are mixed for each
channel and step by exponential weights on their discounted squared errors, known a horizon late.
Rows, scaling and score are as in PROCEED (KDD 2025): the mean squared error of rows 3600 to 14400
of an hourly table, four times as many of a table of quarters of an hour, in units of the deviation
of the first 2880. It stands on its own: nothing of it is the package's but the reading of files.
"""

import argparse
from pathlib import Path

import numpy as np

from sensors.recordings import read

DAY, TRAIN, FIRST, LAST = 24, 2880, 3600, 14400  # rows of an hourly table
RIDGES = {  # lags and forgetting for each row, of hourly tables and of quarters of an hour
    1: ((48, 0.998), (96, 1.0), (96, 0.9995), (96, 0.998), (336, 1.0)),
    4: ((96, 0.9998), (336, 1.0), (336, 0.9998), (512, 1.0)),
}
RIDGE, DISCOUNT, SHARPNESS = 1e-4, 0.999, 2.0


def windows(z, origins, lags):
    """[origins, channels, lags] the newest values at each origin, less the newest of all."""
    rows = np.lib.stride_tricks.sliding_window_view(z, lags, axis=0)[origins - lags + 1]
    return rows - z[origins][:, :, None]


def linear(z, horizon, lags, forgetting, day, first):
    """[rows, horizon, channels] forecasts of one ridge regression; NaN before `first`."""
    out = np.full((len(z), horizon, z.shape[1]), np.nan, np.float32)
    inner, cross = np.zeros((lags, lags)), np.zeros((lags, horizon))
    learned = lags - 1  # the first origin that nothing was learned from yet
    for begin in range(first, len(z), day):
        complete = np.arange(learned, begin - horizon)  # all of their truth is there
        for some in np.array_split(complete, len(complete) // 500 + 1):
            x = windows(z, some, lags)
            steps = some[:, None] + np.arange(1, horizon + 1)
            y = (z[steps] - z[some][:, None]).transpose(0, 2, 1)
            weight = forgetting ** np.arange(len(some) - 1, -1, -1.0)[:, None, None]
            inner *= forgetting ** len(some)
            cross *= forgetting ** len(some)
            weighted = (x * weight).reshape(-1, lags)
            inner += weighted.T @ x.reshape(-1, lags)
            cross += weighted.T @ y.reshape(-1, horizon)
        learned = begin - horizon
        ridge = RIDGE * np.trace(inner) / lags
        weights = np.linalg.solve(inner + ridge * np.eye(lags), cross)
        origins = np.arange(begin - 1, min(begin - 1 + day, len(z)))
        ahead = windows(z, origins, lags) @ weights
        out[origins] = ahead.transpose(0, 2, 1) + z[origins][:, None]
    return out


def naive(z, horizon, day):
    """Persistence, and the values as few whole days before as lie in the past."""
    origins, steps = np.arange(len(z))[:, None], np.arange(1, horizon + 1)
    before = np.maximum(origins + steps - day * -(-steps // day), 0)
    held = np.repeat(z[:, None], horizon, axis=1)
    return held.astype(np.float32), z[before].astype(np.float32)


def mixed(z, experts, first):
    """[rows, horizon, channels] the pool's forecasts from `first` - 1 on."""
    horizon, out = experts[0].shape[1], np.full_like(experts[0], np.nan)
    loss = np.zeros((len(experts), *experts[0].shape[1:]))
    for origin in range(first - 1, len(z)):
        made = origin - horizon  # its whole horizon is known
        if made >= first - 1:
            truth = z[made + 1 : origin + 1]
            error = np.stack([one[made] for one in experts]) - truth
            loss = DISCOUNT * loss + (1 - DISCOUNT) * error**2
        usual = np.maximum(loss.mean(axis=0), 1e-12)
        weight = np.exp(-SHARPNESS * len(experts) * (loss - loss.min(axis=0)) / usual)
        weight /= weight.sum(axis=0)
        out[origin] = sum(w * one[origin] for w, one in zip(weight, experts, strict=True))
    return out


def scaled(path):
    """Read a table; its rows up to the last one that counts, scaled, and its rows an hour.

    Raises:
        SystemExit: It is of another length or rate.
    """
    recording = read(path)
    a_row = np.median(np.diff(recording.time))
    times = round(3600 / a_row)
    if times not in RIDGES or len(recording.values) < LAST * times:
        raise SystemExit(
            f"{path}: wanted {LAST} rows of an hour or {4 * LAST} of a quarter of an hour, "
            f"got {len(recording.values)} of {a_row:g} s"
        )
    values = recording.values[: LAST * times]
    train = values[: TRAIN * times]
    return (values - train.mean(axis=0)) / train.std(axis=0), times


def main():
    """Print the mean squared errors."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("input", type=Path)
    arguments.add_argument("--steps", type=int, nargs="+", default=[1, 24, 48, 96])
    args = arguments.parse_args()
    z, times = scaled(args.input)
    first, last, day = FIRST * times, LAST * times, DAY * times
    for horizon in args.steps:
        experts = [
            linear(z, horizon, lags, forgetting, day, first) for lags, forgetting in RIDGES[times]
        ]
        pool = mixed(z, [*experts, *naive(z, horizon, day)], first)
        origins = np.arange(first - 1, last - horizon)
        truth = z[origins[:, None] + np.arange(1, horizon + 1)]
        print(f"{horizon:3} steps: {((pool[origins] - truth) ** 2).mean():.4f}", flush=True)


if __name__ == "__main__":
    main()
