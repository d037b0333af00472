"""What each part of the forecast earns: experts, their mixture, recall, encoder, and learning.

    python tests/benchmarks/ablation.py ETTh1.csv [--horizon 96] [--rows 14400] [--from 3600]
        [--columns a,b] [--time-column NAME] [--without encoder,channels] [--set KEY=VALUE]...

Takes a recording once through the model with its attention frozen, and once with a gradient step
every 32 samples. Prints the mean squared error of every forecast that the model keeps, over steps
1..h and all channels, in variances of the rows before `--from` (by default the first quarter).
`--without channels` takes each channel through a model of its own; `--set` changes the [model]
table: `--set layers=2 --set decoder=true`. Rows with missing values are left out.
"""

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adaptive import learner, model, ring, runtime
from adaptive.engine import Engine
from adaptive.settings import KINDS, Model
from sensors.recordings import read

EVERY = 32


def forecasts(values, settings, learns, encoder=True):
    """[rows, horizon, kinds, channels] what was forecast after each sample."""
    engine = Engine(1, values.shape[1], settings)
    shape, level = engine.shape, settings.ladder()[-1]
    if not encoder:
        level = replace(level, window_samples=0)

    @jax.jit
    def block(params, bank, rows):
        def one(bank, x):
            state = ring.of_stream(bank, jnp.int32(0))
            seen = jnp.isfinite(x).astype(jnp.float32)
            state, _ = model.step(params, state, jnp.nan_to_num(x), seen, level)
            return ring.with_stream(bank, jnp.int32(0), state), state.made[:, : len(KINDS)]

        return jax.lax.scan(one, bank, rows)

    @jax.jit
    def step(params, learned, bank):
        row = ring.of_stream(bank, jnp.int32(0))
        params, learned, _ = learner.step(params, learned, row, shape, settings.objective)
        return params, learned, model.anew(params, bank)._replace(slope=jnp.zeros_like(bank.slope))

    params, learned, made = jax.tree.map(jnp.asarray, engine.params), engine.learned, []
    bank = jax.tree.map(jnp.asarray, engine.bank)
    rows = jnp.asarray(values - values[0], jnp.float32)
    for first in range(0, len(rows) - EVERY + 1, EVERY):
        bank, out = block(params, bank, rows[first : first + EVERY])
        made.append(np.asarray(out))
        if learns:
            params, learned, bank = step(params, learned, bank)
    return np.concatenate(made)


def errors(made, values, start):
    """[horizon, kinds] mean squared error of each step, in variances of the rows before `start`."""
    mean, deviation = values[:start].mean(axis=0), values[:start].std(axis=0)
    z = (values - mean) / deviation
    horizon, out = made.shape[1], []
    for h in range(1, horizon + 1):
        origins = np.arange(start - 1, len(made) - h)
        ahead = (made[origins, h - 1] + (values[0] - mean)) / deviation
        out.append(((ahead - z[origins + h][:, None]) ** 2).mean(axis=(0, 2)))
    return np.array(out)


def main():
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("input", type=Path)
    arguments.add_argument("--horizon", type=int, default=96)
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--from", type=int, dest="start")
    arguments.add_argument("--columns", type=lambda text: text.split(","))
    arguments.add_argument("--time-column")
    arguments.add_argument("--without", default="", help="encoder, channels or both")
    arguments.add_argument("--set", action="append", default=[], help="of the [model] table")
    args = arguments.parse_args()
    without = set(filter(None, args.without.split(",")))
    if without - {"encoder", "channels"}:
        raise SystemExit(f"--without: wanted encoder, channels or both, got {args.without}")
    runtime.prepare()
    values = read(args.input, columns=args.columns, time_column=args.time_column).values
    values = values[np.isfinite(values).all(axis=1)][: args.rows]
    settings = Model(horizon_samples=args.horizon, **tomllib.loads("\n".join(args.set)))
    start = args.start or len(values) // 4
    steps = [h for h in (1, 8, 24, 48, 96) if h <= args.horizon]
    print("forecast    attention |", "  ".join(f"1..{h:<4}" for h in steps))
    parts = [values] if "channels" not in without else np.split(values, values.shape[1], axis=1)
    for learns in (False, True):
        made = [forecasts(part, settings, learns, "encoder" not in without) for part in parts]
        by_step = errors(np.concatenate(made, axis=3), values, start)
        for k, kind in enumerate(KINDS):
            numbers = "  ".join(f"{by_step[:h, k].mean():.4f}" for h in steps)
            if not learns or kind in ("recall", "encoder", "corrected", "served"):
                print(f"{kind:<11} {'learning' if learns else 'frozen':<9} | {numbers}", flush=True)


if __name__ == "__main__":
    main()
