import asyncio
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from itertools import count

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from adaptive import checkpoint, config
from adaptive.agent import Agent
from adaptive.config import ConfigError
from adaptive.controller import Controller
from adaptive.engine import Engine
from adaptive.sinks import JsonLinesSink, ListSink
from adaptive.snapshot import Snapshot
from sensors import wire
from sensors.sample import Sample

SMALL = {"memory_samples": 512, "window_samples": 16, "dim": 8, "heads": 2}
RATE = 100.0  # [Hz]
ROWS = 1200


@pytest.fixture(scope="module")
def compiled():
    controller = Controller(1, 2, config.table(config.Model, SMALL, "small"))
    assert list(controller.engine.warm_up())[-1] == "learn"
    return controller


@pytest.fixture(autouse=True)
def programs(compiled, monkeypatch):
    """Nothing compiles twice."""

    def warm_up(self, levels=None, learn=True):
        self.take_programs(compiled.engine)
        return iter(())

    monkeypatch.setattr(Engine, "warm_up", warm_up)


def some():
    t = np.arange(ROWS) / RATE
    rng = np.random.default_rng(0)
    beats = np.exp(-0.5 * ((t[:, None] * 1.2 + np.array([0.0, 0.02])) % 1.0 - 0.5) ** 2 / 0.003)
    return t, beats + 0.01 * rng.normal(size=(ROWS, 2))


def recording(folder, rows=slice(None), name="whole"):
    t, x = some()
    np.savez(folder / f"{name}.npz", time=t[rows], values=x[rows])
    return folder / f"{name}.npz"


def settings(path, checkpoint="", model=None, **source):
    entry = {"kind": "file", "path": str(path), "stream": "s", "speed": 1.0, "deadline_ms": 1e4}
    return config.parse(
        {
            "agent": {"checkpoint_path": str(checkpoint), "isolation": "none"},
            "model": SMALL | {"learn_every_samples": 16} | (model or {}),
            "source": [entry | source],
            "sink": [],
        },
        "test",
    )


def run(virtual_time, made):
    """Run an agent in virtual time, where every call takes no time: the same each time."""
    agent = Agent(made)
    virtual_time.run(agent.run())
    agent.loop.check()
    return agent


def state(agent):
    """What must not depend on where it was stopped."""
    arrays, header = agent.snapshot()
    counters = header["tracks"]["s"]["counters"]
    kept = ("received", "full", "mandatory", "met", "missed", "alarms", "learn_steps", "levels")
    arrays = {name: value for name, value in arrays.items() if "pending.counts" not in name}
    return arrays, header["banks"][0]["controller"], {name: counters[name] for name in kept}


@pytest.mark.slow
def test_a_recording_at_full_speed_is_answered_row_by_row(tmp_path):
    out = tmp_path / "answers.jsonl"
    made = settings(recording(tmp_path), speed=0.0)._replace(sinks=(JsonLinesSink(str(out)),))
    agent = Agent(made)
    asyncio.run(agent.run())
    agent.loop.check()
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["sequence"] for answer in answers] == list(range(ROWS))
    counters = agent.tracks["s"].counters
    assert (counters.received, counters.in_flight, counters.shed) == (ROWS, 0, {})
    assert counters.full > 0.9 * ROWS


@pytest.mark.slow
def test_an_agent_that_was_restarted_goes_on_as_if_it_had_not_been(tmp_path, virtual_time):
    half = 700
    whole = run(virtual_time, settings(recording(tmp_path)))
    where = tmp_path / "state" / "agent.safetensors"
    first = recording(tmp_path, slice(half), "first")
    second = recording(tmp_path, slice(half, None), "second")
    run(virtual_time, settings(first, where))
    again = run(virtual_time, settings(second, where))
    (arrays, plain, counts), (wanted, wanted_plain, wanted_counts) = state(again), state(whole)
    assert counts == wanted_counts
    assert counts["received"] == ROWS
    assert counts["learn_steps"] > 50
    assert plain == wanted_plain
    assert arrays.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(arrays[name], wanted[name], name)


@pytest.mark.slow
def test_after_a_restart_there_is_no_burn_in(tmp_path, virtual_time):
    where = tmp_path / "agent.safetensors"
    run(virtual_time, settings(recording(tmp_path, slice(1000), "first"), where))
    next_rows = recording(tmp_path, slice(1000, 1050), "next")

    def error(checkpoint):
        """The mean squared error of the next sample's forecasts."""
        sink = ListSink()
        run(virtual_time, settings(next_rows, checkpoint)._replace(sinks=(sink,)))
        made = [result.answer.estimate.forecast[0] for result in sink[:-1]]
        return np.mean((np.array(made) - [result.sample.values for result in sink[1:]]) ** 2)

    assert error(where) < 0.5 * error(tmp_path / "other.safetensors")


def test_a_checkpoint_where_none_can_be_written_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"agent.checkpoint_path: .*must exist and be writable"):
        Agent(settings(recording(tmp_path), tmp_path / "file" / "agent.safetensors"))
    with pytest.raises(ConfigError, match="is a folder"):
        Agent(settings(recording(tmp_path), tmp_path))


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, virtual_time):
    where, path = tmp_path / "agent.safetensors", recording(tmp_path)
    agent = Agent(settings(path, where))
    agent._save(where, *agent.snapshot())
    for other in (
        settings(path, where, model={"seed": 1}),
        settings(path, where, stream="t"),
        settings(path, where, transform=[{"kind": "fill", "max_gap_s": 0.1}]),
    ):
        with pytest.raises(ConfigError, match=r"of the settings \w+, got \w+.*go back to them"):
            Agent(other)
    assert Agent(settings(path, where)).path == where


@pytest.mark.slow
def test_streams_in_another_order_do_not_get_each_others_memory(tmp_path, monkeypatch):
    # A bank numbers its streams in the order of the configuration.
    monkeypatch.setattr(Engine, "warm_up", lambda self, levels=None: iter(()))
    monkeypatch.setattr(Engine, "costs", lambda self: [{1: 0.001}] * len(self.programs.levels))
    made = settings(recording(tmp_path), tmp_path / "agent.safetensors")
    two = made._replace(feeds=(made.feeds[0], settings(recording(tmp_path), stream="t").feeds[0]))
    agent = Agent(two)
    agent._save(agent.path, *agent.snapshot())
    Agent(two)
    with pytest.raises(ConfigError, match="of the settings"):
        Agent(two._replace(feeds=two.feeds[::-1]))


def test_a_password_that_is_not_there_stops_the_start(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_PASSWORD", raising=False)
    made = config.parse(
        {
            "broker": {"username": "me", "password_env": "NO_SUCH_PASSWORD"},
            "source": [{"kind": "mqtt", "topics": [{"topic": "a"}]}],
        },
        "test",
    )
    with pytest.raises(ConfigError, match=r"broker.password_env names .*NO_SUCH_PASSWORD"):
        Agent(made)


def test_a_driver_that_is_not_installed_stops_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "sensors.mqtt5_line", None)
    source = [{"kind": "mqtt", "topics": [{"topic": "a"}]}]
    made = config.parse({"broker": {"driver": "mqtt5"}, "source": source}, "test")
    with pytest.raises(ConfigError, match=r'pip install "adaptive-attention\[fast\]"'):
        Agent(made)


@pytest.mark.parametrize("name", ["cpus", "worker_cpus"])
def test_processors_that_are_not_there_stop_the_start(tmp_path, name):
    made = settings(recording(tmp_path))
    about = dataclasses.replace(made.agent, isolation="process", **{name: (10**6,)})
    with pytest.raises(ConfigError, match=rf"agent.{name}: must be of .* got \[1000000\]"):
        Agent(made._replace(agent=about))


@pytest.mark.slow
def test_checkpoints_are_made_while_it_runs_and_a_failure_does_not_stop_it(
    tmp_path, virtual_time, caplog
):
    folder = tmp_path / "state"
    made = settings(recording(tmp_path), folder / "agent.safetensors")
    made = made._replace(agent=dataclasses.replace(made.agent, checkpoint_every_s=3.0))
    agent, saved, keep = Agent(made), [], Agent._save

    def save(self, path, arrays, header):
        saved.append(header["tracks"]["s"]["counters"]["received"])
        if len(saved) == 2:  # the folder is gone: someone tidied up
            path.unlink()
            folder.rmdir()
        there = keep(self, path, arrays, header)
        assert there == (len(saved) != 2)
        folder.mkdir(exist_ok=True)
        return there

    agent._save = save.__get__(agent)
    virtual_time.run(agent.run())
    assert saved[-1] == ROWS
    assert 4 <= len(saved) <= 5
    assert caplog.text.count("no checkpoint") == 1
    assert (folder / "agent.safetensors").exists()


@pytest.mark.slow
def test_saving_waits_for_a_save_that_is_under_way(tmp_path, monkeypatch):
    # A thread cannot be cancelled: at the end two of them wrote the same file.
    agent, inside, together = Agent(settings(recording(tmp_path))), [], []

    def slow(*args):
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    monkeypatch.setattr(checkpoint, "save", slow)
    threads = [threading.Thread(target=agent._save, args=(tmp_path, {}, {})) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1]


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "saved"), [(signal.SIGKILL, True), (signal.SIGSTOP, False)])
def test_answers_go_on_when_the_process_of_the_models_dies_or_hangs(tmp_path, caplog, how, saved):
    agent = Agent(
        config.parse(
            {
                "agent": {
                    "deadline_ms": 50.0,
                    "checkpoint_path": str(tmp_path / "state") if saved else "",
                    "checkpoint_every_s": 0.5,
                    "hang_s": 0.5,
                },
                "model": SMALL,
                "source": [{"kind": "simulated-ecg", "sampling_rate_hz": 100.0}],
                "sink": [],
            },
            "test",
        )
    )
    (track,), loop = agent.tracks.values(), agent.loop
    at = dict[str, int]()  # how many had been refined, and answered by the mandatory score

    async def refined(more):
        had = track.counters.full
        await until(lambda: track.counters.full >= had + more)

    async def main():
        running = asyncio.create_task(agent.run())
        async with asyncio.timeout(120.0):
            await refined(400)
            at["missed"] = track.counters.missed
            os.kill(agent.process.child.pid, how)
            await until(lambda: not loop.ready.is_set())
            at["simple"], at["before"] = track.counters.mandatory, track.counters.received
            assert agent.banks[0].governor.cause == "worker"
            await refined(100)
            assert track.counters.mandatory > at["simple"]
            await asyncio.sleep(1.0)
            assert agent.banks[0].governor.mode == 0
            async with loop.model:
                arrays = await agent.banks[0].controller.engine.beside("arrays")
            at["seen"] = max(int(a.max()) for name, a in arrays.items() if name.endswith(".count"))
            at["since"] = track.counters.received - at["before"]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    loop.check()
    assert track.counters.received == track.counters.full + track.counters.mandatory + sum(
        track.counters.shed.values()
    )
    said = [record.getMessage() for record in caplog.records]
    assert sum("Until the models are back" in line for line in said) == 1
    assert any("begin anew" in line for line in said) == (not saved)
    assert track.counters.missed - at["missed"] <= 0.01 * track.counters.received
    # What the models had seen before the last checkpoint they know again, or else nothing of it.
    assert (at["seen"] > at["since"] + 200) == saved
    # It was noticed, and there again, soon.
    assert track.counters.reasons.get("waited", 0) < 300


@pytest.mark.slow
def test_models_whose_process_has_grown_too_large_are_started_anew_as_they_were(tmp_path, caplog):
    about = {"checkpoint_path": str(tmp_path / "state"), "checkpoint_every_s": 0.5}
    agent = Agent(
        config.parse(
            {
                "agent": about | {"deadline_ms": 50.0},
                "model": SMALL,
                "source": [{"kind": "simulated-ecg", "sampling_rate_hz": 100.0}],
                "sink": [],
            },
            "test",
        )
    )
    (track,), loop, memory = agent.tracks.values(), agent.loop, agent.spending.memory
    first = agent.process.child.pid

    async def main():
        running = asyncio.create_task(agent.run())
        async with asyncio.timeout(120.0):
            await until(lambda: track.counters.full >= 300)
            # As if it had held nothing when the models were ready.
            memory.allowed, memory._first = 1.05 * memory.held, {first: 0}
            await until(lambda: agent.process.child.pid != first and loop.ready.is_set())
            again, had = agent.process.child.pid, track.counters.full
            await until(lambda: track.counters.full >= had + 200)  # and four checkpoints later
            assert agent.process.child.pid == again
            async with loop.model:
                arrays = await agent.banks[0].controller.engine.beside("arrays")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return max(int(a.max()) for name, a in arrays.items() if name.endswith(".count"))

    seen = asyncio.run(main())
    loop.check()
    assert seen > 300 + 200 - 60  # what it knew at the checkpoint, half a second ago at most
    counters = track.counters
    assert counters.received == counters.full + counters.mandatory + sum(counters.shed.values())
    assert counters.missed <= 0.01 * counters.received
    assert agent.banks[0].governor.cause == ""
    said = [record.getMessage() for record in caplog.records]
    assert sum("for the memory that they hold" in line for line in said) == 1


@pytest.mark.slow
def test_a_checkpoint_that_the_models_cannot_give_ends_nothing(tmp_path, caplog, monkeypatch):
    # As when their process is started anew between two pieces of its state.
    async def failing(self, model, busy):
        raise RuntimeError("in the process of the models: no such piece")

    monkeypatch.setattr(Snapshot, "take_beside", failing)
    source = {"kind": "simulated-ecg", "sampling_rate_hz": 100.0}
    agent = {"checkpoint_path": str(tmp_path / "state"), "checkpoint_every_s": 0.1}
    made = Agent(
        config.parse(
            {"agent": agent | {"isolation": "none"}, "model": SMALL, "source": [source]}, "test"
        )
    )

    async def main():
        running = asyncio.create_task(made.run())
        await asyncio.sleep(1.0)
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert sum("no such piece" in record.getMessage() for record in caplog.records) > 2
    assert (tmp_path / "state").exists()  # the last one is taken at once


TOML = """
[agent]
deadline_ms = 100
checkpoint_path = "{folder}/agent.safetensors"
checkpoint_every_s = 1
[model]
memory_samples = 512
window_samples = 16
dim = 8
heads = 2
[broker]
port = {port}
[[source]]
kind = "mqtt"
topics = [{{ topic = "raw", stream = "s", channels = ["a", "b"] }}]
[[sink]]
kind = "mqtt"
"""


@pytest.mark.broker
@pytest.mark.slow
def test_after_kill_9_an_agent_goes_on_and_counts_what_it_missed(
    mosquitto, agent_process, tmp_path
):
    text, answers = TOML.format(folder=tmp_path, port=mosquitto.port), []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _, __, message: answers.append(json.loads(message.payload))
    client.connect(mosquitto.host, mosquitto.port)
    client.loop_start()
    client.subscribe("adaptive/s/answers", 1)
    numbers = count()

    def publish_until(condition, seconds=90.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            n = next(numbers)
            values = np.array([np.sin(n / 10), np.cos(n / 10)])
            payload = wire.encode_sample(Sample("s", n, n / 50, values))
            client.publish("raw", payload, 1).wait_for_publish(5.0)
            time.sleep(0.02)

    try:
        agent = agent_process(text)
        saved = tmp_path / "agent.safetensors"
        publish_until(lambda: len(answers) > 60 and saved.exists())
        agent.end(9)
        published = next(numbers)
        publish_until(lambda n=published: next(numbers) > n + 40)
        seen = len(answers)
        again = agent_process(text)
        publish_until(lambda: len(answers) > seen + 60)
        time.sleep(1.0)
        summary = again.end()["s"]
        again.wait_for("went on from")
    finally:
        client.disconnect()
        client.loop_stop()
    assert summary["missing"] >= 40
    # All numbers up to the newest were received, or are known to be missing; the first agent
    # began to listen somewhere.
    first = answers[0]["sequence"]
    assert summary["received"] + summary["missing"] == summary["newest"] - first + 1
    assert summary["received"] > 60
    assert summary["restarts"] == summary["duplicates"] == 0
    shed = sum(summary["shed"].values())
    assert summary["received"] == summary["full"] + summary["mandatory"] + shed
