"""How long a sample takes, here and elsewhere, in turns in one process on one core.

    python tests/benchmarks/peers/speed.py [--rounds 30] [--streams 256]

Needs gcc, and of `pip install onnx onnxruntime torch continual-inference river deep-river` what is
to be compared; what is not installed is left out. One channel, one step ahead.

Each model of attention is of the base size: width 32, 4 heads, 2 layers, a window of 128, random
weights. `full window` computes all of it anew for each sample, as a model does that is not made for
streams. `plain recall` is the distance to 4096 past moments at three scales in NumPy, without
forecasts or learning. `C` is `step.c` beside this file: the large parts of our default step, by
hand, for this processor; the limit. Ours are whole, with learning; calibration, which is Python,
stands in the rows that say so.
"""

import argparse
import ctypes
import os
import platform
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.settings import BLOCK, Model

DIM, HEADS, LAYERS, WINDOW = 32, 4, 2, 128
LAGS, SCALES, NEAREST = 4096, (3, 12, 48), 5


def ours(streams):
    """Our levels: for one stream the model alone and with calibration, then blocks of many."""
    found = {}
    one = Engine(1, 1, Model())
    list(one.warm_up())
    controller = Controller(1, 1, Model(), engine=one)
    block = one.programs.no_block()
    block[0, 0], block[:, 2] = 0.0, 1.0
    for k, level in enumerate(controller.levels):

        def alone(x, k=k):
            block[0, 1] = x
            return one.run(k, block)

        def answered(x, k=k):
            values = np.array([x])
            (estimate,) = controller.refine(k, [controller.arrive(0, values)])
            return controller.settle(estimate, 0.0, values)

        found[f"adaptive, {level.name}", 1] = alone
        found[f"adaptive, {level.name}, NumPy in to answer out", 1] = answered
    bank = Engine(streams, 1, Model())
    list(bank.warm_up(learning=False))
    many = bank.programs.no_block()
    many[:, 2] = 1.0
    at = 0
    for k, level in enumerate(controller.levels):

        def together(x, k=k):
            nonlocal at
            many[:, 0] = (at + np.arange(BLOCK)) % streams
            many[:, 1] = x
            at += BLOCK
            return bank.run(k, many)

        found[f"adaptive, {level.name}, {streams} streams", BLOCK] = together
    return found


def limit(streams):
    """The step by hand."""
    path = Path(tempfile.mkdtemp()) / "step.so"
    source = Path(__file__).with_name("step.c")
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", path, source, "-lm"], check=True)
    code = ctypes.CDLL(str(path))
    sizes = code.bytes_of_stream, code.bytes_of_weights
    for size in sizes:
        size.restype = ctypes.c_long
    rng, found = np.random.default_rng(0), {}
    weights = rng.normal(0, 0.1, sizes[1]() // 4).astype(np.float32)
    for many, name in ((1, "C"), (streams, f"C, {streams} streams")):
        bank = np.zeros(many * sizes[0](), np.uint8)
        code.init(ctypes.c_void_p(bank.ctypes.data), many)
        count = min(many, BLOCK)
        out = np.zeros(count, np.float32)
        at = 0

        def run(x, many=many, bank=bank, count=count, out=out):
            nonlocal at
            which = ((at + np.arange(count)) % many).astype(np.int32)
            values = np.full(count, x, np.float32)
            at += count
            pointers = (a.ctypes.data for a in (bank, weights, which, values, out))
            code.run(*map(ctypes.c_void_p, pointers), count)
            return out

        found[name, count] = run
    return found


def plain_recall():
    """Distances in NumPy, updated for each sample."""
    ring, far = np.zeros(2 * LAGS, np.float32), np.zeros((len(SCALES), LAGS), np.float32)
    rate = (1 / np.array(SCALES, np.float32))[:, None]
    count = 0

    def run(x):
        nonlocal count
        at = count % LAGS
        ring[at] = ring[at + LAGS] = x
        count += 1
        apart = (ring[at + 1 : at + 1 + LAGS] - np.float32(x)) ** 2
        np.subtract(apart, far, out=(step := np.empty_like(far)))
        far[:] += rate * step
        least = far.reshape(len(SCALES), -1, 16).min(axis=2)
        return np.sqrt(np.partition(least, NEAREST, axis=1)[:, :NEAREST]).sum()

    return {("plain recall, NumPy", 1): run}


def onnx_runtime():
    """The whole window in ONNX Runtime, one thread."""
    import onnx
    import onnxruntime
    from onnx import helper

    rng, nodes, constants = np.random.default_rng(0), [], []

    def constant(name, array):
        constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(name, *shape):
        return constant(name, rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32))

    def node(kind, *inputs, **attributes):
        out = f"n{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    split = constant("split", np.array([WINDOW, HEADS, DIM // HEADS], np.int64))
    join = constant("join", np.array([WINDOW, DIM], np.int64))
    root = constant("root", np.float32((DIM // HEADS) ** -0.5))
    ones = constant("ones", np.ones(DIM, np.float32))
    x = node("MatMul", "x", weight("embed", 1, DIM))
    for k in range(LAYERS):
        normed = node("LayerNormalization", x, ones)
        parts = (
            node("Reshape", node("MatMul", normed, weight(f"{name}{k}", DIM, DIM)), split)
            for name in ("query", "key", "value")
        )
        turns = ((1, 0, 2), (1, 2, 0), (1, 0, 2))
        query, key, value = (
            node("Transpose", part, perm=turn) for part, turn in zip(parts, turns, strict=True)
        )
        share = node("Softmax", node("Mul", node("MatMul", query, key), root), axis=-1)
        mixed = node("Transpose", node("MatMul", share, value), perm=(1, 0, 2))
        out = node("MatMul", node("Reshape", mixed, join), weight(f"out{k}", DIM, DIM))
        x = node("Add", x, out)
        up = node("MatMul", node("LayerNormalization", x, ones), weight(f"up{k}", DIM, 2 * DIM))
        x = node("Add", x, node("MatMul", node("Relu", up), weight(f"down{k}", 2 * DIM, DIM)))
    nodes.append(helper.make_node("MatMul", [x, weight("head", DIM, 1)], ["y"]))
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [WINDOW, 1]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, "window", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    window = np.zeros((WINDOW, 1), np.float32)

    def run(x):
        window[:-1] = window[1:]
        window[-1] = x
        return session.run(None, {"x": window})[0]

    return {("ONNX Runtime, full window", 1): run}


def torch_eager():
    """The whole window in PyTorch, one thread."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    embed, head, window = nn.Linear(1, DIM), nn.Linear(DIM, 1), torch.zeros(1, WINDOW, 1)

    def run(x):
        with torch.inference_mode():
            window[:, :-1] = window[:, 1:].clone()
            window[:, -1] = x
            return head(encoder(embed(window)))[0, -1].numpy()

    return {("PyTorch eager, full window", 1): run}


def continual_transformer():
    """One layer of the continual transformer."""
    import continual
    import torch

    torch.set_num_threads(1)
    encoder = continual.TransformerEncoder(
        continual.TransformerEncoderLayerFactory(
            d_model=DIM,
            nhead=HEADS,
            dim_feedforward=2 * DIM,
            dropout=0.0,
            sequence_len=WINDOW,
        ),
        num_layers=1,
    ).eval()

    def run(x):
        with torch.inference_mode():
            return encoder.forward_step(torch.full((1, DIM), x))

    return {("continual-inference, 1 layer", 1): run}


def river_trees():
    """Half-space trees, scored and learned."""
    from river import anomaly

    trees = anomaly.HalfSpaceTrees(seed=1)

    def run(x):
        sample = {"x": 0.5 + 0.1 * x}
        score = trees.score_one(sample)
        trees.learn_one(sample)
        return score

    return {("River, half-space trees", 1): run}


def deep_river_autoencoder():
    """An autoencoder on the newest 16 values, scored and learned."""
    import torch
    from deep_river.anomaly import Autoencoder
    from torch import nn

    torch.set_num_threads(1)

    class Net(nn.Module):
        def __init__(self, n_features=16):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(n_features, 4), nn.LeakyReLU(), nn.Linear(4, n_features)
            )

        def forward(self, x):
            return self.layers(x)

    model, newest = Autoencoder(module=Net(), lr=0.005), deque([0.0] * 16, maxlen=16)

    def run(x):
        newest.append(x)
        sample = {str(k): value for k, value in enumerate(newest)}
        score = model.score_one(sample)
        model.learn_one(sample)
        return score

    return {("deep-river, autoencoder", 1): run}


PEERS = (
    plain_recall,
    onnx_runtime,
    torch_eager,
    continual_transformer,
    river_trees,
    deep_river_autoencoder,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=60, help="of each in a round")
    parser.add_argument("--streams", type=int, default=256)
    args = parser.parse_args()
    tables(measured(args.rounds, args.calls, args.streams), args.streams)


def measured(rounds, calls, streams):
    """Times of a sample [s], by name and the number of samples in a call."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    runs = ours(streams) | limit(streams)
    for peer in PEERS:
        try:
            runs |= peer()
        except ImportError as error:
            print(f"left out: {error}")
    laps = {name: [] for name in runs}
    rng = np.random.default_rng(0)
    for number in range(rounds + 2):  # the first two warm up
        for name, run in runs.items():
            values = np.sin(np.arange(calls) / 20) + rng.normal(0, 0.1, calls)
            for x in values.tolist():
                begin = time.perf_counter()
                run(x)
                if number > 1:
                    laps[name].append((time.perf_counter() - begin) / name[1])
    os.sched_setaffinity(0, before)
    return laps


def tables(laps, streams):
    """Print quantiles [us] of a sample, and ratios to our default level and to C."""
    full = np.median(laps["adaptive, full", 1])
    whole = np.median(laps[f"adaptive, full, {streams} streams", BLOCK])
    limits = {1: np.median(laps["C", 1]), BLOCK: np.median(laps[f"C, {streams} streams", BLOCK])}
    print(f"{platform.processor() or platform.machine()}, one core; us a sample")
    print(f"{'':46s} {'p50':>8s} {'p99':>8s} {'p99.9':>8s} {'/ full':>7s} {'/ C':>7s}")
    for (name, many), lap in laps.items():
        p50, p99, p999 = 1e6 * np.quantile(lap, (0.5, 0.99, 0.999))
        base = full if many == 1 else whole
        print(
            f"{name:46s} {p50:8.1f} {p99:8.1f} {p999:8.1f} {p50 / 1e6 / base:7.2f} "
            f"{p50 / 1e6 / limits[many]:7.1f}"
        )


if __name__ == "__main__":
    main()
