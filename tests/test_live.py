"""The agent in a process of its own, with a real broker, at the real speed of a sensor."""

import json
import os
import socket
import time
from collections import Counter

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from sensors import wire
from sensors.sample import Feedback, Sample

pytestmark = [pytest.mark.broker, pytest.mark.slow]

RATE = 360.0  # [Hz]
SECONDS = 10.0
TOML = """
[agent]
deadline_ms = 20
[model]
memory_samples = 512
window_samples = 16
dim = 8
heads = 2
[broker]
port = {port}
[[source]]
kind = "mqtt"
feedback_topic = "ward/said"
[[source.topics]]
topic = "ward/ecg"
stream = "ecg"
channels = ["II", "V1"]
units = ["mV", "mV"]
sampling_rate_hz = 360
[[sink]]
kind = "mqtt"
"""


class Ward:
    """Publishes a signal, and keeps the answers."""

    def __init__(self, port):
        self.answers = []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.on_message = self._heard
        self.client.on_connect = lambda *_: self.client.subscribe("adaptive/+/answers", 1)
        self.client.max_inflight_messages_set(0)  # no limit
        # As a sensor would: else samples come in bursts of 40 ms.
        self.client.on_socket_open = lambda _, __, line: line.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _heard(self, client, _, message):
        self.answers.append(json.loads(message.payload))

    def publish(self, n):
        phase = np.array([0.0, 0.02]) + n / RATE * 1.2
        values = np.exp(-0.5 * (phase % 1.0 - 0.5) ** 2 / 0.002)
        payload = wire.encode_sample(Sample("ecg", n, n / RATE, values))
        self.client.publish("ward/ecg", payload, 1)

    def publish_until_answered(self, start=0, seconds=90.0):
        """Publish slowly until the agent listens; return the next number."""
        deadline, n = time.monotonic() + seconds, start
        while not self.answers:
            assert time.monotonic() < deadline, "no answer"
            self.publish(n)
            n += 1
            time.sleep(0.05)
        return n

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def wait(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def identity(counters):
    shed = sum(counters["shed"].values())
    return counters["received"] == counters["full"] + counters["mandatory"] + shed


def test_every_sample_over_mqtt_is_answered_once_and_feedback_is_learned(mosquitto, agent_process):
    agent, ward = agent_process(TOML.format(port=mosquitto.port)), Ward(mosquitto.port)
    try:
        first = ward.publish_until_answered()
        begin, count = time.monotonic(), round(SECONDS * RATE)
        for n in range(first, first + count):
            time.sleep(max(begin + (n - first) / RATE - time.monotonic(), 0.0))
            ward.publish(n)
            if n % 360 == 0:  # about what was half a second ago, as an operator's word
                said = Feedback("ecg", (n - 180) / RATE, int(n % 720 == 0), 0.1)
                ward.client.publish("ward/said", wire.encode_feedback(said), 1)
            if n - first == 500:
                ward.client.publish("ward/ecg", b"{ no JSON", 1)
                ward.client.publish("ward/said", b'{"stream":"other","time":1,"label":1}', 1)
        sent = set(range(first, first + count))
        assert wait(lambda: sent <= {answer["sequence"] for answer in ward.answers})
        summary = agent.end()["ecg"]
    finally:
        ward.close()
    numbers = Counter(answer["sequence"] for answer in ward.answers)
    assert set(numbers.values()) == {1}
    assert sent <= numbers.keys()
    assert identity(summary)
    assert summary["received"] == len(ward.answers)
    assert summary["in_flight"] == summary["missing"] == summary["duplicates"] == 0
    assert summary["rejected"] == {"malformed": 1}
    assert summary["feedback"]["received"] >= 9
    assert summary["feedback"]["learned"] == summary["feedback"]["paired"] >= 9
    answers = [answer for answer in ward.answers if answer["sequence"] in sent]
    refined = np.mean([answer["level"] != "mandatory" for answer in answers])
    in_time = np.mean([answer["slack_ms"] >= 0 for answer in answers])
    quantiles = " / ".join(f"{summary[f'latency_p{q}_ms']:.1f}" for q in ("50", "99", "99.9"))
    print(f"{count} samples: refined {refined:.1%}, in time {in_time:.1%}, {quantiles} ms")
    crowded = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert refined > 0.05 or crowded


def test_an_agent_waits_for_a_broker_that_is_not_there_yet(mosquitto_with, agent_process):
    broker = mosquitto_with(start=False)
    agent = agent_process(TOML.format(port=broker.port))
    agent.wait_for("is away, trying again")
    broker.start()
    ward = Ward(broker.port)
    try:
        last = ward.publish_until_answered()
        assert wait(lambda: ward.answers[-1]["sequence"] >= last - 5)
        # And once more: it went, and is back.
        seen = len(ward.answers)
        broker.stop()
        agent.wait_for("[Errno")
        broker.start()
        ward.answers.clear()
        ward.publish_until_answered(last + 1000)
        summary = agent.end()["ecg"]
    finally:
        ward.close()
    assert seen > 0
    assert identity(summary)
    assert summary["missing"] >= 900
    assert agent.log.read_text().count(f"{broker.port} is back") == 2


def test_a_broker_that_refuses_ends_the_agent_with_one_clear_line(
    mosquitto_with, agent_process, tmp_path
):
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite ward/#\n")  # samples may come, answers may not go
    broker = mosquitto_with(f"acl_file {rules}")
    agent, ward = agent_process(TOML.format(port=broker.port)), Ward(broker.port)
    try:
        for n in range(1800):
            if agent.process.poll() is not None:
                break
            ward.publish(n)
            time.sleep(0.05)
    finally:
        ward.close()
    log = agent.log.read_text()
    assert agent.process.poll() == 1, log
    assert "error: adaptive/ecg/answers: the broker" in log
    assert "refused the publication: not authorized" in log
    assert "Traceback" not in log
