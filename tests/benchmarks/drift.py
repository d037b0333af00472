"""How fast forecasts recover after a change, and whether learning ever harms.

    python tests/benchmarks/drift.py [--seeds 8] [--data DATA]

Simulated streams change once, in the middle: their level, their gain, their dynamics, their season,
or a sensor hangs for 300 samples. Measured one step ahead, over all seeds, in units of the noise
that nobody can foresee: the squared error before the change, in the 500 samples after it, and in
the last 1000; and when the mean of 200 samples is back within 5 % of that before, or of the least
that any learner has in the end, if that is more. `served` is the whole model, the others stand
alone: the forecasters in it, a linear forecaster of 32 lags that learns by Adam or by recursive
least squares, and the latter frozen at the change.

With DATA, the folder of public data sets (traffic/metro_interstate_i94.csv.gz, drift/elec2.csv.gz):
squared errors of `served` in each block of 30 days, relative to the same model whose attention is
frozen, and to the linear forecaster frozen after the first tenth.
"""

import argparse
from pathlib import Path

import numpy as np
from ablation import forecasts

from adaptive import runtime
from adaptive.settings import KINDS, Model
from sensors.recordings import read

ROWS, CHANGE, AFTER, END, SMOOTH = 6400, 3200, 500, 1000, 200
CHANGES = ("level", "gain", "dynamics", "season", "hangs")
LAGS = 32
CHOSEN = ("seasonal", "rls-long", "rls-slow", "rls-fast", "trunk", "served")


def made(change, seed):
    """A season, a second-order autoregression and noise, which change at `CHANGE`; and the noise.

    Both are [rows, 1].
    """
    rng = np.random.default_rng(seed)
    values, part, noise = np.zeros(ROWS), np.zeros(ROWS), np.zeros(ROWS)
    period, coefficients, gain, level = 48.0, (1.2, -0.5), 1.0, 0.0
    phase = 0.0
    for n in range(ROWS):
        if n == CHANGE:
            level += 6.0 if change == "level" else 0.0
            gain *= 2.5 if change == "gain" else 1.0
            coefficients = (0.2, -0.7) if change == "dynamics" else coefficients
            period = 66.0 if change == "season" else period
        part[n] = coefficients[0] * part[n - 1] + coefficients[1] * part[n - 2]
        fresh = 0.3 * rng.normal()
        part[n] += fresh
        phase += 2 * np.pi / period
        wave = np.sin(phase) + 0.4 * np.sin(2 * phase + 1.0)
        values[n] = level + gain * (wave + part[n])
        noise[n] = gain * fresh
    if change == "hangs":
        values[CHANGE : CHANGE + 300] = values[CHANGE]
    return values[:, None], noise[:, None]


def linear(values, how, frozen_at=None):
    """One-step forecasts [rows, channels] of a linear forecaster for each channel, by itself."""
    rows, channels = values.shape
    mean, deviation = values[:500].mean(axis=0), values[:500].std(axis=0) + 1e-9
    z = (values - mean) / deviation
    out = np.zeros_like(z)
    for c in range(channels):
        weights, inverse = np.zeros(LAGS + 1), np.eye(LAGS + 1)
        first, second = np.zeros(LAGS + 1), np.zeros(LAGS + 1)
        for n in range(LAGS, rows - 1):
            x = np.append(z[n - LAGS + 1 : n + 1, c] - z[n, c], 1.0)
            x[LAGS - 1] = z[n, c]
            out[n + 1, c] = z[n, c] + weights @ x
            if frozen_at is not None and n >= frozen_at:
                continue
            error = z[n + 1, c] - out[n + 1, c]
            if how == "adam":
                slope, step = -error * x, n - LAGS + 1
                first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
                size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
                weights = weights - 3e-3 * first / (1 - 0.9**step) / size
            else:
                gain = inverse @ x / (0.999 + x @ inverse @ x)
                weights = weights + gain * error
                inverse = (inverse - np.outer(gain, x @ inverse)) / 0.999
    return out * deviation + mean


def one_step(values, learns=True):
    """One-step forecasts [rows, kinds, channels] of the model's parts; row n is of sample n."""
    out = forecasts(values, Model(horizon_samples=1), learns)[:, 0] + values[0]
    return np.concatenate((np.zeros_like(out[:1]), out[:-1]))


def recovered(curve, goal):
    """The first place where a curve is within 5 % of a goal."""
    within = np.flatnonzero(curve <= 1.05 * goal)
    return int(within[0]) if len(within) else len(curve)


def simulated(seeds):
    """Print what changes cost."""
    print("change     learner    |  before, after, in the end | samples until back")
    for change in CHANGES:
        errors = {}
        for seed in range(seeds):
            values, noise = made(change, seed)
            got = dict(zip(KINDS, one_step(values).transpose(1, 0, 2), strict=True))
            got = {name: got[name] for name in CHOSEN}
            got["adam"], got["rls"] = linear(values, "adam"), linear(values, "rls")
            got["frozen"] = linear(values, "rls", CHANGE)
            for name, one in (*got.items(), ("noise", values - noise)):
                errors.setdefault(name, []).append((one[:, 0] - values[:, 0]) ** 2)
        mean = {name: np.mean(some, axis=0) for name, some in errors.items()}
        noise = mean.pop("noise")
        begin = CHANGE + (300 if change == "hangs" else 0)
        spans = (slice(CHANGE - END, CHANGE), slice(begin, begin + AFTER), slice(-END, None))
        parts = {
            name: [one[at].mean() / noise[at].mean() for at in spans] for name, one in mean.items()
        }
        least = min(end for _, _, end in parts.values())
        window = np.ones(SMOOTH)
        below = np.convolve(noise[begin:], window, "valid")
        for name, one in mean.items():
            curve = np.convolve(one[begin:], window, "valid") / below
            back = recovered(curve, max(parts[name][0], least))
            numbers = "  ".join(f"{part:7.3f}" for part in parts[name])
            print(f"{change:10} {name:10} | {numbers} | {back:6d}", flush=True)


def blocks(path, clock, columns, rows_a_block):
    """Print the worst and the mean block of a recording."""
    values = read(path, columns=columns, time_column=clock).values
    values = values[np.isfinite(values).all(axis=1)]
    rows = (len(values) // 32) * 32
    served = KINDS.index("served")
    got = {
        "learning": one_step(values)[:rows, served],
        "attention frozen": one_step(values, False)[:rows, served],
        "rls": linear(values, "rls")[:rows],
        "rls frozen": linear(values, "rls", len(values) // 10)[:rows],
        "adam": linear(values, "adam")[:rows],
    }
    deviation = values.std(axis=0)
    first = len(values) // 10
    whole = (rows - first) // rows_a_block
    by_block = {
        name: np.array(
            [
                (
                    ((one - values[:rows]) / deviation)[first + k * rows_a_block :][:rows_a_block]
                    ** 2
                ).mean()
                for k in range(whole)
            ]
        )
        for name, one in got.items()
    }
    for name, one in by_block.items():
        ratio = by_block["learning"] / one
        print(
            f"{path.name}: {name:16} | error {one.mean():.4f} | learning / it: "
            f"mean {ratio.mean():.3f}, worst block {ratio.max():.3f} of {whole}",
            flush=True,
        )


def main():
    """Print the tables."""
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--seeds", type=int, default=8)
    args.add_argument("--data", type=Path)
    options = args.parse_args()
    runtime.prepare()
    simulated(options.seeds)
    if options.data:
        blocks(
            options.data / "traffic/metro_interstate_i94.csv.gz",
            "date_time",
            ["traffic_volume"],
            720,
        )
        blocks(options.data / "drift/elec2.csv.gz", "date", ["nswprice", "nswdemand"], 1440)


if __name__ == "__main__":
    main()
