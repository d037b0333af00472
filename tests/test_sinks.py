import asyncio
import io
import json

import numpy as np
import pytest

from adaptive.controller import MANDATORY, Answer, Estimate, Explanation
from adaptive.sinks import (
    BYTES,
    TOGETHER,
    JsonLinesSink,
    ListSink,
    MqttSink,
    Result,
    Sink,
    append,
    encode,
    lists,
)
from adaptive.surprise import Surprise
from sensors.mqtt import Broker, Connection
from sensors.sample import Sample, Unavailable
from sensors.testing import check_sink, examine_sink

CHANNELS = ("II", "V1")


def result(
    sequence=0,
    *,
    alarm=False,
    why=True,
    forecast=(0.5, -0.25),
    p_value=0.01,
    event=0.25,
    stream="bed7",
):
    explanation = Explanation(
        np.array([12, 250], np.int32),
        np.array([0.75, 0.25]),
        np.array([0.2, 0.8]),
        np.array([0.0, 0.25, 0.0, 0.0, 0.5, 0.25, 0.0]),
        np.array([0.75, 0.0]),
        "delta",
    )
    estimate = Estimate(
        0, sequence, 3 if why else MANDATORY, Surprise(4.0, 4.0, 4.0, p_value, 0),
        "seldom seen" if why else "a jump",
        np.array([forecast], np.float32), np.array([[0.1, np.inf]], np.float32),
        explanation if why else None, None,
    )  # fmt: skip
    answer = Answer(estimate, 0.97, p_value, 0.5 if alarm else 0.0, alarm, False, event)
    values = np.array([0.1, np.nan])
    level = "full" if why else "mandatory"
    return Result(Sample(stream, sequence, 12.5, values), answer, level, 100.0, 100.02, CHANNELS)


def decoded(one, explain=False, now=100.005):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(encode(one, now, explain), parse_constant=refuse)


def test_an_answer_on_the_wire_says_what_it_is_about_and_how_soon_it_came():
    assert decoded(result(7)) == {
        "stream": "bed7",
        "sequence": 7,
        "time": 12.5,
        "score": 0.97,
        "p_value": 0.01,
        "strength": 0.0,
        "alarm": False,
        "dismissed": False,
        "event": 0.25,
        "level": "full",
        "forecast": [[0.5, -0.25]],
        "spread": [[pytest.approx(0.1), None]],
        "latency_ms": 5.0,
        "slack_ms": 15.0,
    }


def test_an_alarm_says_why_and_what_it_attended_to():
    message = decoded(result(alarm=True))
    assert message["alarm"] is True
    assert message["reason"] == "seldom seen, 1 in 100, mostly V1"
    assert message["attention"] == {
        "samples_ago": [12, 250],
        "weight": [0.75, 0.25],
        "channel": {"II": 0.2, "V1": 0.8},
        "forecaster": {
            "persistence": 0.0,
            "seasonal": 0.25,
            "profile-fast": 0.0,
            "profile-slow": 0.0,
            "rls-long": 0.5,
            "rls-slow": 0.25,
            "rls-fast": 0.0,
        },
        "correction": {"recall": 0.75, "encoder": 0.0},
        "encoder": "delta",
    }


def test_an_alarm_of_the_mandatory_score_has_a_reason_but_no_attention():
    message = decoded(result(alarm=True, why=False))
    assert message["reason"] == "a jump, 1 in 100 (quick look only)"
    assert message["level"] == "mandatory"
    assert "attention" not in message


def test_other_answers_say_what_they_attended_to_when_asked():
    assert "attention" not in decoded(result())
    assert decoded(result(), explain=True)["attention"]["samples_ago"] == [12, 250]
    assert "reason" not in decoded(result(), explain=True)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_null(number):
    message = decoded(result(forecast=(number, 1.0), event=float("nan")), explain=True)
    assert message["forecast"] == [[None, 1.0]]
    assert message["spread"][0][1] is None
    assert message["event"] is None
    assert decoded(result(p_value=float(number)))["p_value"] is None


@pytest.mark.parametrize("p_value", [0.0, 1e-300, 1.0])
def test_a_reason_has_odds_that_can_be_read(p_value):
    assert len(result(alarm=True, p_value=p_value).reason) < 70


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_are_appended_one_for_each_answer(tmp_path):
    path = tmp_path / "answers.jsonl"

    async def write(sink, results):
        await sink.write(results)
        await sink.close()

    asyncio.run(write(JsonLinesSink(str(path)), [result(0), result(1, alarm=True)]))
    asyncio.run(write(JsonLinesSink(str(path), explain=True), [result(2)]))
    asyncio.run(
        write(JsonLinesSink(str(path), alarms_only=True), [result(3, alarm=True), result(4)])
    )
    assert [message["sequence"] for message in lines(path)] == [0, 1, 2, 3]
    assert ["attention" in message for message in lines(path)] == [False, True, True, True]


def test_json_lines_go_to_standard_output(capsys):
    asyncio.run(JsonLinesSink().write([result(0), result(1)]))
    out = capsys.readouterr().out
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == [0, 1]


def test_a_full_disk_makes_a_file_unavailable():
    with pytest.raises(Unavailable, match="/dev/full: No space left"):
        asyncio.run(JsonLinesSink("/dev/full").write([result()]))


def test_what_could_be_written_in_part_is_taken_back(tmp_path):
    class Filling(io.FileIO):
        """A file on a disk with three bytes left."""

        left = 3

        def write(self, content):
            if not self.left:
                raise OSError(28, "No space left on device")
            self.left -= 1
            return super().write(content[:1])

    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"old\n")
    with Filling(path, "a") as file, pytest.raises(OSError, match="No space"):
        append(file, b"new line\n")
    assert path.read_bytes() == b"old\n"


@pytest.mark.parametrize("topic", ["a/+/b", "a/#", "a/{strem}", "a/{}", "a/{"])
def test_a_topic_that_cannot_be_published_to_is_refused(topic):
    with pytest.raises(ValueError, match="sink.topic"):
        MqttSink(topic=topic)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([], []),
        ([10] * (TOGETHER + 1), [TOGETHER, 1]),
        ([BYTES // 2] * 3, [1, 1, 1]),
        ([BYTES // 4] * 4, [3, 1]),
        ([2 * BYTES, 5, 5], [1, 2]),
    ],
    ids=str,
)
def test_answers_are_put_together_as_long_as_they_fit(sizes, wanted):
    contents = [b'"%b"' % (b"x" * (size - 2)) for size in sizes]
    made = lists(contents)
    assert [len(json.loads(one)) for one in made] == wanted
    assert [one for group in made for one in json.loads(group)] == [
        json.loads(content) for content in contents
    ]
    assert all(len(one) <= BYTES + 2 for one, n in zip(made, wanted, strict=True) if n > 1)


@pytest.mark.parametrize("make", [ListSink, lambda: JsonLinesSink("x.jsonl"), MqttSink])
def test_every_sink_is_one(make):
    assert isinstance(make(), Sink)


def test_a_list_keeps_the_contract_of_a_sink():
    check_sink(ListSink, [result(0), result(1, alarm=True)], virtual=True)


@pytest.mark.parametrize("options", [{}, {"explain": True}, {"alarms_only": True}])
def test_a_file_keeps_the_contract_of_a_sink(tmp_path, options):
    path = str(tmp_path / "answers.jsonl")
    check_sink(lambda: JsonLinesSink(path, **options), [result(0), result(1, alarm=True)])


@pytest.mark.broker
@pytest.mark.slow
def test_mqtt_keeps_the_contract_of_a_sink_and_publishes_every_answer(mosquitto):
    async def main():
        connection = Connection(Broker(port=mosquitto.port))
        running = asyncio.create_task(connection.run())
        try:
            await connection.wait_connected()
            subscription = await connection.subscribe(["adaptive/+/answers"])
            results = [result(0), result(1, alarm=True), result(2)]
            await examine_sink(lambda: MqttSink(connection=connection), results)
            only = MqttSink(connection=connection, alarms_only=True, topic="adaptive/x/answers")
            await only.write(results)
            together = MqttSink(connection=connection, together=True)
            await together.write([*results, result(3, stream="bed8"), result(4)])
            await together.write([result(n) for n in range(TOGETHER + 1)])
            got = []
            async with asyncio.timeout(5.0):
                async for message in subscription:
                    connection.acknowledge(message)
                    said = json.loads(message.payload)
                    several = isinstance(said, list)
                    numbers = [answer["sequence"] for answer in (said if several else [said])]
                    got.append((message.topic, numbers if several else numbers[0]))
                    if len(got) == 9:
                        return got
        finally:
            running.cancel()

    topic = "adaptive/bed7/answers"
    # `examine_sink` writes them all, and the first again.
    assert asyncio.run(main()) == [
        *((topic, n) for n in (0, 1, 2, 0)),
        ("adaptive/x/answers", 1),
        (topic, [0, 1, 2, 4]),
        ("adaptive/bed8/answers", [3]),
        (topic, list(range(TOGETHER))),
        (topic, [TOGETHER]),
    ]


@pytest.mark.broker
@pytest.mark.slow
def test_results_for_a_broker_that_is_away_are_handed_back(mosquitto):
    async def main():
        connection = Connection(Broker(port=mosquitto.port, timeout_s=0.2))
        with pytest.raises(Unavailable):
            await MqttSink(connection=connection).write([result()])

    asyncio.run(main())
