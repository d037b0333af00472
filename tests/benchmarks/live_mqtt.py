"""Measures a live agent over MQTT: is every sample answered, and how many by the deadline?

    python tests/benchmarks/live_mqtt.py ../shared/data/ecg/mitdb/208 --seconds 60 --feedback
    python tests/benchmarks/live_mqtt.py --seconds 60 --load-from 20 --load-for 20

Starts a mosquitto on a free port of the loopback interface, `adaptive run` with a deadline of
20 ms, and a sensor, each in a process of its own. The sensor publishes sample by sample at QoS 1,
at the rate of the recording (or of the simulated ECG if none is named). Needs `mosquitto`, and for
WFDB records the extra `ecg`. The load is one `stress-ng` for each core, or a loop of Python where
that is not installed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt

from adaptive.ingest import broker, process, wait
from sensors import wire
from sensors.recordings import read
from sensors.sample import Feedback, Sample
from sensors.simulated import SimulatedEcg

STREAM = "ecg"
LABEL_DELAY = 5.0  # [s] from an event to the operator's word
START_WITHIN = 180.0  # [s] that compiling may take
CONFIG = """
[agent]
deadline_ms = {deadline}
[broker]
port = {port}
[[source]]
kind = "mqtt"
feedback_topic = "sensor/feedback"
[[source.topics]]
topic = "sensor/ecg"
stream = "ecg"
channels = {channels}
sampling_rate_hz = {rate}
[[sink]]
kind = "mqtt"
"""


def signal_of(record: str, seconds: float) -> tuple[float, list[str], np.ndarray, list]:
    """Load what the sensor sends.

    Returns:
        Sampling rate [Hz], names of the channels, values [samples, channels], and what an operator
        says: (time [s], label).
    """
    if record:
        found = read(record)
        rate = found.sampling_rate or 1 / float(np.median(np.diff(found.time[:1000])))
        count = round(seconds * rate)
        values = np.resize(found.values, (count, found.values.shape[1]))
        lap = len(found.values) / rate
        first = float(found.time[0])
        beats = [(event[0] - first, event[1]) for event in found.events]
        said = [
            (at + turn * lap, int(symbol in ("V", 1)))
            for turn in range(int(seconds // lap) + 1)
            for at, symbol in beats
            if symbol in ("V", "N", 0, 1)
        ]
        # Operators confirm each event, and dismiss a tenth of what is none.
        said = [one for n, one in enumerate(said) if one[1] or n % 10 == 0]
        return rate, list(found.channels), values, said
    source = SimulatedEcg(duration_s=seconds)
    (stream,) = source.streams
    recording = source.record()
    said = [(e.start, e.label) for e in recording.events if e.label is not None]
    return source.sampling_rate_hz, list(stream.channels), recording.values, said


def connected(port: int) -> mqtt.Client:
    """Connect, without delay for small messages."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(10_000)
    client.on_socket_open = lambda _, __, line: line.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


def sensor(port: int, record: str, seconds: float, feedback: bool, go, sent) -> None:
    """Publish the signal; a process of its own."""
    rate, _, values, said = signal_of(record, seconds)
    client = connected(port)

    def publish(n: int) -> None:
        # Times go on over the warm-up, whose numbers are the first.
        one = Sample(STREAM, n, n / rate, values[max(n - begin, 0) % len(values)])
        client.publish("sensor/ecg", wire.encode_sample(one), 1)

    begin = n = 0
    while not go.is_set():  # slowly, until the agent listens and has answered
        publish(n)
        n += 1
        time.sleep(0.02)
    time.sleep(1.0)
    begin, words = n, sorted(said) if feedback else []
    times = np.empty(len(values))
    start = time.monotonic()
    for k in range(len(values)):
        time.sleep(max(start + k / rate - time.monotonic(), 0.0))
        times[k] = time.monotonic()
        publish(begin + k)
        while words and words[0][0] + LABEL_DELAY <= k / rate:
            at, label = words.pop(0)
            word = Feedback(STREAM, begin / rate + at, label, 0.0)
            client.publish("sensor/feedback", wire.encode_feedback(word), 1)
    sent.send((begin, times))
    time.sleep(2.0)
    client.disconnect()
    client.loop_stop()


def burner() -> tuple[str, ...]:
    """What keeps one core busy."""
    if shutil.which("stress-ng"):
        return ("stress-ng", "--cpu", "1")
    return (sys.executable, "-c", "while True: pass")


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Run everything and print the table."""
    rate, channels, values, _ = signal_of(args.record, args.seconds)
    config = folder / "agent.toml"
    nodelay = "set_tcp_nodelay true\n" if args.broker_nodelay else ""
    answers: list[tuple[float, dict]] = []
    summary, log = folder / "summary.json", folder / "agent.log"
    spawn = multiprocessing.get_context("spawn")
    go, (receive, send) = spawn.Event(), spawn.Pipe(duplex=False)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(broker(folder, nodelay))
        config.write_text(
            CONFIG.format(deadline=args.deadline_ms, port=port, channels=channels, rate=rate)
        )
        client = connected(port)
        stack.callback(client.loop_stop)
        client.on_message = lambda _, __, message: answers.append(
            (time.monotonic(), json.loads(message.payload))
        )
        client.subscribe("adaptive/+/answers", 1)
        command = (sys.executable, "-m", "adaptive", "run", config, "--no-table")
        agent = stack.enter_context(process(*command, "--summary", summary, log=log))
        wait(lambda: "ready" in log.read_text(), START_WITHIN, "the agent was not ready")
        child = spawn.Process(
            target=sensor, args=(port, args.record, args.seconds, args.feedback, go, send)
        )
        child.start()
        stack.callback(child.kill)
        wait(lambda: len(answers) > 20, START_WITHIN, "the agent did not answer")
        go.set()
        begun = time.monotonic()
        if args.load_for:
            time.sleep(1.0 + args.load_from)
            for n in range(os.cpu_count() or 1):
                load = ("timeout", args.load_for, *burner())
                stack.enter_context(process(*load, log=folder / f"load{n}.log"))
        left = args.seconds + 60.0 - (time.monotonic() - begun)
        if not receive.poll(left):
            raise SystemExit("the sensor did not end")
        first, times = receive.recv()
        last = first + len(times) - 1
        with contextlib.suppress(RuntimeError):
            wait(lambda: answers[-1][1]["sequence"] >= last, 10.0, "")
        child.join(10.0)
        agent.send_signal(signal.SIGTERM)
        agent.wait(30.0)
        client.disconnect()
    report(args, rate, first, times, answers, json.loads(summary.read_text())[STREAM])


def report(args, rate: float, first: int, times: np.ndarray, answers, counters: dict) -> None:
    """Print what was measured."""
    got = [(at, one) for at, one in answers if first <= one["sequence"] < first + len(times)]
    number = np.array([one["sequence"] - first for _, one in got], int)
    slack = np.array([one["slack_ms"] for _, one in got])
    latency = np.array([one["latency_ms"] for _, one in got])
    whole = 1e3 * (np.array([at for at, _ in got]) - times[number])
    level = np.array([one["level"] for _, one in got])
    refined, in_time = level != "mandatory", slack >= 0
    shed = sum(counters["shed"].values())
    total = counters["full"] + counters["mandatory"] + shed
    said = counters["feedback"]
    with contextlib.suppress(OSError):
        models = Path("/proc/cpuinfo").read_text().split("model name")
        model = models[1].splitlines()[0].strip(": \t")
        print(f"machine: {os.cpu_count()} x {model}")
    print(f"load before: {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    print(
        f"sensor: {args.record or 'simulated ECG'}, {rate:g} Hz, {args.seconds:g} s, QoS 1, "
        f"deadline {args.deadline_ms:g} ms"
    )
    once = len(np.unique(number))
    print(f"sent {len(times)}, answered {once}, answered again {len(number) - once}")
    print(
        f"identity (with warm-up): received {counters['received']} = {counters['full']} full + "
        f"{counters['mandatory']} mandatory + {shed} shed: {counters['received'] == total}"
    )
    print(
        f"missing {counters['missing']}, rejected {counters['rejected']}, shed {counters['shed']}"
    )
    print(
        "arrival to acknowledged by the broker: p50 / p99 / p99.9 = "
        + " / ".join(f"{counters[f'latency_p{q}_ms']:.1f}" for q in ("50", "99", "99.9"))
        + " ms"
    )
    print(
        f"feedback: received {said['received']}, paired {said['paired']}, learned {said['learned']}"
    )
    print(f"gradient steps: {counters['learn_steps']}, alarms: {counters['alarms']}\n")
    at = number / rate
    end = args.load_from + args.load_for
    phases = {"all": at >= 0}
    if args.load_for:
        phases["before the load"] = at < args.load_from
        phases["under load"] = (at >= args.load_from) & (at < end)
        phases["after the load"] = at >= end
    head = ("in time", "refined in time", "published p50/p99/p99.9 ms", "sensor to answer ms")
    print(f"{'phase':16}{'samples':>8}" + "".join(f"{text:>28}" for text in head))
    for name, chosen in phases.items():
        if not chosen.any():
            continue
        cells = (
            f"{np.mean(in_time[chosen]):.2%}",
            f"{np.mean((refined & in_time)[chosen]):.2%}",
            " / ".join(f"{q:.1f}" for q in np.quantile(latency[chosen], (0.5, 0.99, 0.999))),
            " / ".join(f"{q:.1f}" for q in np.quantile(whole[chosen], (0.5, 0.99, 0.999))),
        )
        print(f"{name:16}{chosen.sum():8}" + "".join(f"{cell:>28}" for cell in cells))
    print()
    for name, chosen in phases.items():
        names, counts = np.unique(level[chosen], return_counts=True)
        shares = ", ".join(
            f"{n} {c / counts.sum():.1%}" for n, c in zip(names, counts, strict=True)
        )
        print(f"{name}: {shares}")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", nargs="?", default="", help="WFDB record; else a simulated ECG")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline-ms", type=float, default=20.0)
    parser.add_argument("--feedback", action="store_true", help="send the annotations, 5 s later")
    parser.add_argument("--load-from", type=float, default=0.0, metavar="S")
    parser.add_argument("--load-for", type=float, default=0.0, metavar="S", help="0: no load")
    parser.add_argument("--broker-nodelay", action="store_true", help="set_tcp_nodelay true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
