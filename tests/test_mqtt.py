import asyncio
import contextlib
import logging
import random
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import mqtt5
import msgspec
import numpy as np
import pytest

from sensors import driver as drivers
from sensors import wire
from sensors.mqtt import Broker, Connection, MqttSource, Refused, Topic
from sensors.mqtt5_line import Mqtt5Line
from sensors.sample import Feedback, Rejected, Sample, Source, Unavailable
from sensors.testing import examine_source

SOURCE = MqttSource((Topic("ward/bed1", "bed1", ("II", "V1"), ("mV", "mV"), 250.0),), "ward/said")
SPOKEN = {
    "3.1.1": {"driver": "aiomqtt", "version": "3.1.1"},
    "5": {"driver": "aiomqtt", "version": "5"},
    "mqtt5": {"driver": "mqtt5", "version": "5"},
}
VERSIONS = pytest.mark.parametrize("version", SPOKEN)
spoken = "5"  # by connections that are not told


def pytest_generate_tests(metafunc):
    """Have all that goes through a broker done with each driver."""
    names = set(metafunc.fixturenames)
    if {"mosquitto", "mosquitto_with"} & names and "version" not in names:
        metafunc.parametrize("driver", ["aiomqtt", "mqtt5"], indirect=True)


@pytest.fixture(autouse=True)
def driver(request):
    global spoken
    spoken = "mqtt5" if getattr(request, "param", "") == "mqtt5" else "5"


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(30.0):
            return await coroutine

    return asyncio.run(bounded())


@contextlib.asynccontextmanager
async def connected(port, *, wait=True, **fields):
    fields |= SPOKEN[fields.get("version", spoken)]
    connection = Connection(Broker(port=port, **fields), rng=random.Random(0), base=0.05, cap=0.1)
    task = asyncio.create_task(connection.run())
    try:
        if wait:
            await until(lambda: connection.connected or task.done())
        yield connection
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def reading(connection, source=SOURCE):
    """The source's items, once the broker has confirmed that it listens."""
    items = aiter(replace(source, connection=connection))
    first = asyncio.ensure_future(anext(items))
    await until(lambda: first.done() or connection._subscriptions)
    await asyncio.sleep(0.05)

    async def following():
        yield await first
        async for item in items:
            yield item

    try:
        yield following()
    finally:
        first.cancel()
        await asyncio.wait([first])
        await items.aclose()


def sample(sequence, *values):
    return Sample("bed1", sequence, sequence / 250.0, np.array(values or (0.5, np.nan)))


@pytest.mark.broker
@VERSIONS
def test_samples_and_feedback_go_through_a_broker_unchanged(mosquitto, version):
    async def main():
        async with (
            connected(mosquitto.port, version=version) as connection,
            reading(connection) as items,
        ):
            feedback = Feedback("bed1", 0.5, 1, 2.0)
            await connection.publish("ward/bed1", wire.encode_sample(sample(3)))
            await connection.publish("ward/bed1", wire.encode_samples([sample(4), sample(5, 1, 2)]))
            await connection.publish("ward/said", wire.encode_feedback(feedback))
            await connection.publish("ward/bed1", b'{"time":9,"values":[1,2]}', 0)
            return feedback, [await anext(items) for _ in range(5)], connection.counts

    feedback, (one, two, three, said, last), counts = run(main())
    assert (one.sequence, one.time, two.sequence, three.sequence) == (3, 0.012, 4, 5)
    np.testing.assert_array_equal(one.values, [0.5, np.nan])
    np.testing.assert_array_equal(three.values, [1.0, 2.0])
    assert said == feedback
    assert last.sequence == 6  # counted on
    assert (counts["published"], counts["received"]) == (4, 4)


@pytest.mark.broker
@pytest.mark.slow
@VERSIONS
def test_what_was_not_answered_comes_back_after_a_cut_and_nothing_else(mosquitto, version):
    kept = {"version": version, "client_id": "agent", "clean_session": False}

    async def unanswered():
        async with (
            connected(mosquitto.port, **kept) as connection,
            reading(connection) as items,
        ):
            for n in range(0, 10, 2):
                await connection.publish(
                    "ward/bed1", wire.encode_samples([sample(n), sample(n + 1)])
                )
            return [(await anext(items)).sequence for _ in range(10)]

    async def half_answered():
        async with connected(mosquitto.port, **kept) as connection:
            source = replace(SOURCE, connection=connection)
            items = aiter(source)
            got = [await anext(items) for _ in range(10)]
            # All of the first message, half of the second, all of the third.
            for n in (0, 1, 2, 4, 5):
                source.answered(got[n])
            await asyncio.sleep(0.05)
            await items.aclose()
            assert connection.counts["acknowledged"] == 2
            return [one.sequence for one in got]

    async def the_rest():
        async with connected(mosquitto.port, **kept) as connection:
            items = aiter(replace(SOURCE, connection=connection))
            got = [(await anext(items)).sequence for _ in range(6)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await anext(items)
            return got

    assert run(unanswered()) == list(range(10))
    assert run(half_answered()) == list(range(10))
    assert run(the_rest()) == [2, 3, 6, 7, 8, 9]


@pytest.mark.broker
def test_an_acknowledgement_for_an_earlier_connection_is_ignored(mosquitto):
    async def main():
        async with connected(mosquitto.port, client_id="a", clean_session=False) as connection:
            subscription = await connection.subscribe(["t"])
            await connection.publish("t", b"1")
            messages = aiter(subscription)
            old = await anext(messages)
            mosquitto.stop()
            await until(lambda: not connection.connected)
            mosquitto.start()
            await until(lambda: connection.connected)
            connection.acknowledge(old)
            return connection.counts

    counts = run(main())
    assert (counts["late"], counts["acknowledged"], counts["connects"]) == (1, 0, 2)


@pytest.mark.broker
@pytest.mark.slow
@VERSIONS
def test_after_a_restart_of_the_broker_samples_come_again(mosquitto, version, caplog):
    caplog.set_level(logging.INFO, "sensors.connection")

    async def main():
        async with (
            connected(mosquitto.port, version=version) as connection,
            reading(connection) as items,
        ):
            await connection.publish("ward/bed1", wire.encode_sample(sample(0)))
            before = await anext(items)
            mosquitto.stop()
            await until(lambda: not connection.connected)
            with pytest.raises(Unavailable, match="away"):
                await connection.publish("ward/bed1", b"", timeout=0)
            with pytest.raises(Unavailable, match="no answer"):
                await connection.publish("ward/bed1", b"", timeout=0.3)
            # Waits for the broker, and then goes out.
            later = asyncio.create_task(
                connection.publish("ward/bed1", wire.encode_sample(sample(1)))
            )
            await asyncio.sleep(0.1)
            mosquitto.start()
            await later
            return before, await anext(items)

    before, after = run(main())
    assert (before.sequence, after.sequence) == (0, 1)
    said = [record.message for record in caplog.records]
    assert sum("is away" in line for line in said) == 1
    assert sum(line.endswith("is back") for line in said) == 1


@pytest.mark.broker
def test_a_broker_that_is_absent_at_the_start_is_tried_until_it_is_there(mosquitto_with):
    mosquitto = mosquitto_with(start=False)

    async def main():
        async with connected(mosquitto.port, wait=False) as connection:
            items = aiter(replace(SOURCE, connection=connection))
            first = asyncio.ensure_future(anext(items))
            await until(lambda: connection.counts["failures"] >= 3)
            assert not connection.connected
            mosquitto.start()
            await until(lambda: connection.connected)
            await connection.publish("ward/bed1", wire.encode_sample(sample(0)))
            got = await first
            await items.aclose()
            return got

    assert run(main()).sequence == 0


@pytest.mark.broker
@pytest.mark.slow
def test_a_payload_that_is_no_good_is_rejected_once_and_the_next_sample_comes(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection, reading(connection) as items:
            for payload in (b"{", b'{"time":1,"values":[1]}', b'{"time":1,"label":1}', b""):
                await connection.publish("ward/bed1", payload)
            await connection.publish("ward/said", b'{"time":1,"label":1}')
            await connection.publish("ward/bed1", wire.encode_sample(sample(0)))
            got = [await anext(items) for _ in range(6)]
            await until(lambda: connection.counts["acknowledged"] == 5)
            return got

    *bad, good = run(main())
    assert [getattr(item, "reason", None) for item in bad] == [
        "malformed",
        "channels",
        None,  # feedback is welcome on a stream's topic, too
        "malformed",
        "unknown_stream",
    ]
    assert "ward/bed1: " in bad[0].detail
    assert good.sequence == 0


@pytest.mark.broker
def test_a_sample_that_the_broker_has_kept_from_before_is_rejected(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection:
            await connection.publish("ward/bed1", wire.encode_sample(sample(0)), retain=True)
            async with reading(connection) as items:
                return await anext(items)

    got = run(main())
    assert isinstance(got, Rejected)
    assert got.reason == "retained"


@pytest.mark.broker
def test_what_the_broker_keeps_for_later_is_a_sample_for_those_who_are_there(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection, reading(connection) as items:
            await connection.publish("ward/bed1", wire.encode_sample(sample(0)), retain=True)
            return await anext(items)

    assert run(main()).sequence == 0


@VERSIONS
def test_a_refused_subscription_is_a_clear_error(version):
    async def main():
        async with fake_broker(version) as port, connected(port, version=version) as connection:
            async for _ in replace(SOURCE, connection=connection):
                pass

    with pytest.raises(Refused, match=r"ward/bed1: .* refused the subscription: .*0x8"):
        run(main())


@contextlib.asynccontextmanager
async def fake_broker(version):
    """A broker that lets everybody in and nobody subscribe."""

    async def serve(reader, writer):
        while True:
            head = await reader.read(2)
            if len(head) < 2:
                break
            body = await reader.readexactly(head[1])
            if head[0] == 0x10:
                writer.write(b"\x20\x02\0\0" if version == "3.1.1" else b"\x20\x03\0\0\0")
            elif head[0] == 0x82:
                codes = b"\x87\x87" if version != "3.1.1" else b"\x80\x80"
                answer = body[:2] + (b"\0" if version != "3.1.1" else b"") + codes
                writer.write(bytes([0x90, len(answer)]) + answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.broker
def test_a_publication_that_the_access_list_forbids_is_refused_aloud(mosquitto_with, tmp_path):
    access = tmp_path / "access"
    access.write_text("topic readwrite open/#\n")
    mosquitto = mosquitto_with(f"acl_file {access}")

    async def main():
        async with connected(mosquitto.port) as connection:
            await connection.publish("open/door", b"1")
            with pytest.raises(Refused, match=r"shut/door: .*not authorized \(0x87\)"):
                await connection.publish("shut/door", b"1")
            return connection.counts

    counts = run(main())
    assert (counts["published"], counts["refused"]) == (1, 1)


def test_a_broker_that_closes_before_the_handshake_is_tried_again():
    calls = []

    async def main():
        async def slam(reader, writer):
            calls.append(1)
            writer.close()

        server = await asyncio.start_server(slam, "127.0.0.1", 0)
        async with connected(server.sockets[0].getsockname()[1], wait=False) as connection:
            await until(lambda: connection.counts["failures"] >= 3)
            assert not connection.connected
        server.close()

    run(main())
    assert len(calls) >= 3


@pytest.mark.broker
@pytest.mark.slow
def test_nothing_is_lost_when_the_reader_is_slow(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection:
            source = replace(SOURCE, connection=connection)
            got = []

            async def read():
                async for item in source:
                    got.append(item.sequence)
                    source.answered(item)
                    if len(got) % 100 == 0:
                        await asyncio.sleep(0.001)

            task = asyncio.create_task(read())
            await until(lambda: connection._subscriptions)
            await asyncio.sleep(0.05)
            for n in range(0, 1000, 50):
                await asyncio.gather(
                    *(
                        connection.publish("ward/bed1", wire.encode_sample(sample(n + k)))
                        for k in range(50)
                    )
                )
            await until(lambda: len(got) == 1000)
            task.cancel()
            return got, connection.counts

    got, counts = run(main())
    assert got == list(range(1000))
    assert counts["dropped"] == 0


@pytest.mark.broker
@pytest.mark.slow
def test_messages_beyond_the_bound_are_counted_and_not_acknowledged(mosquitto):
    async def main():
        async with connected(mosquitto.port, max_waiting=3, version="3.1.1") as connection:
            subscription = await connection.subscribe(["t"])
            for _ in range(5):
                await connection.publish("t", b"1")
            await until(lambda: connection.counts["received"] == 5)
            messages = aiter(subscription)
            for _ in range(3):
                connection.acknowledge(await anext(messages))
            return connection.counts

    counts = run(main())
    assert (counts["dropped"], counts["acknowledged"]) == (2, 3)


@pytest.mark.broker
@pytest.mark.slow
def test_a_broker_of_version_5_sends_no_more_than_can_wait(mosquitto):
    async def main():
        async with connected(mosquitto.port, max_waiting=6) as connection:
            subscription = await connection.subscribe(["t"])
            for n in range(8):
                await connection.publish("t", b"%d" % n)
            await until(lambda: connection.counts["received"] == 3)
            messages, got = aiter(subscription), []
            for _ in range(8):
                message = await anext(messages)
                got.append(int(message.payload))
                connection.acknowledge(message)
            return got, connection.counts

    got, counts = run(main())
    assert got == list(range(8))
    assert (counts["dropped"], counts["acknowledged"]) == (0, 8)


@pytest.mark.broker
def test_small_messages_are_not_held_back_by_nagle(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection:
            line = connection._line
            wired = (
                line._transport.get_extra_info("socket")
                if spoken == "mqtt5"
                else (line.client._client.socket())
            )
            return wired.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert run(main()) == 1


@pytest.mark.broker
@pytest.mark.slow
def test_a_source_over_mqtt_keeps_the_contract(mosquitto):
    async def main():
        async with connected(mosquitto.port) as connection:

            async def publish():
                n = 0
                while True:
                    with contextlib.suppress(Unavailable):
                        await connection.publish("ward/bed1", wire.encode_sample(sample(n)))
                    n += 1

            task = asyncio.create_task(publish())
            await examine_source(lambda: replace(SOURCE, connection=connection), samples=20)
            task.cancel()

    run(main())


def test_waits_between_attempts_are_drawn_evenly_below_a_doubling_bound(monkeypatch):
    from sensors.testing import virtual_run

    class Drawn(random.Random):
        bounds = []

        def uniform(self, a, b):
            self.bounds.append((a, b))
            return b

    async def main():
        connection = Connection(Broker(), rng=Drawn(), base=0.5, cap=30.0)

        async def away():
            raise OSError("no route")

        monkeypatch.setattr(connection, "_live", away)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(120.0):
                await connection.run()

    virtual_run(main())
    bounds = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert Drawn.bounds[:9] == [(0.0, bound) for bound in bounds]


def test_a_source_without_a_connection_says_what_to_do():
    async def main():
        async for _ in SOURCE:
            pass

    with pytest.raises(ValueError, match="needs a connection"):
        run(main())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"port": 0}, "port"),
        ({"driver": "mqtt5", "version": "3.1.1"}, 'speaks version "5" only'),
        ({"host": ""}, "host"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"clean_session": False}, "client_id"),
        ({"password_env": "A"}, "username"),
        ({"username": "u", "password_env": "A", "password_file": "b"}, "keep one"),
        ({"ca_file": "ca.pem"}, "tls = true"),
        ({"tls": True, "key_file": "key.pem"}, "cert_file"),
    ],
)
def test_a_broker_that_cannot_be_is_refused_with_a_remedy(fields, said):
    with pytest.raises(ValueError, match=said):
        Broker(**fields)


def test_passwords_come_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "open sesame")
    assert Broker(username="u", password_env="SECRET").password() == "open sesame"
    (tmp_path / "secret").write_text("shut\n")
    assert Broker(username="u", password_file=str(tmp_path / "secret")).password() == "shut"
    assert Broker().password() is None
    with pytest.raises(ValueError, match="NOT_THERE"):
        Broker(username="u", password_env="NOT_THERE").password()
    with pytest.raises(ValueError, match="password_file"):
        Broker(username="u", password_file=str(tmp_path / "none")).password()


@pytest.mark.broker
@pytest.mark.slow
def test_a_broker_with_a_certificate_is_trusted_only_if_its_authority_is(mosquitto_with, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate for this test, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    mosquitto = mosquitto_with(f"certfile {certificate}\nkeyfile {key}")

    async def main():
        async with connected(mosquitto.port, tls=True, ca_file=str(certificate)) as trusting:
            await trusting.publish("t", b"1")
        async with connected(mosquitto.port, wait=False, tls=True) as doubting:
            await until(lambda: doubting.counts["failures"] >= 2)
            assert doubting.counts["connects"] == 0

    run(main())


@pytest.mark.broker
def test_topics_of_a_kept_session_that_nobody_reads_any_more_do_not_clog_it(mosquitto, monkeypatch):
    monkeypatch.setattr("sensors.connection.HOLD", 0.1)

    async def main():
        kept = {"client_id": "agent", "clean_session": False}
        async with connected(mosquitto.port, **kept) as connection:
            await connection.subscribe(["old"])
        async with connected(mosquitto.port) as other:
            await other.publish("old", b"1")
        async with connected(mosquitto.port, **kept) as connection:
            await until(lambda: connection.counts["unwanted"] == 1)
            return connection.counts["acknowledged"]

    assert run(main()) == 1


@pytest.mark.broker
def test_what_a_kept_session_delivers_before_its_reader_is_there_waits_for_it(mosquitto):
    async def main():
        kept = {"client_id": "agent", "clean_session": False}
        async with connected(mosquitto.port, **kept) as connection:
            await connection.subscribe(["ward/bed1"])
        async with connected(mosquitto.port) as other:
            await other.publish("ward/bed1", wire.encode_sample(sample(7)))
        async with connected(mosquitto.port, **kept) as connection:
            await until(lambda: connection.counts["received"] == 1)
            items = aiter(replace(SOURCE, connection=connection))
            got = await anext(items)
            await items.aclose()
            return got

    assert run(main()).sequence == 7


def test_a_topic_cannot_be_given_to_two_readers():
    async def main():
        connection = Connection(Broker())
        (await connection.subscribe(["a", "b"])).close()
        await connection.subscribe(["a"])
        with pytest.raises(ValueError, match="subscribed already"):
            await connection.subscribe(["c", "a"])

    run(main())


def test_certificates_that_are_missing_are_named(tmp_path):
    with pytest.raises(ValueError, match="none.pem"):
        Broker(tls=True, ca_file=str(tmp_path / "none.pem")).tls_context()
    assert Broker().tls_context() is None
    assert Broker(tls=True).tls_context() is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"topics": ()},
        {"topics": (Topic("a"), Topic("a", "b"))},
        {"topics": (Topic("a", "s"), Topic("b", "s"))},
        {"topics": (Topic("a"),), "feedback_topic": "a"},
        {"topics": (Topic("a"),), "qos": 2},
    ],
)
def test_topics_that_cannot_be_told_apart_are_refused(fields):
    with pytest.raises(ValueError, match="topic|qos|streams"):
        MqttSource(**fields)


def test_the_source_is_made_of_its_table():
    table = {
        "topics": [{"topic": "a/+/b", "stream": "s", "channels": ["x"], "sampling_rate_hz": 2}],
        "feedback_topic": "f",
    }
    source = msgspec.convert(table, MqttSource)
    assert isinstance(source, Source)
    (stream,) = source.streams
    assert (stream.name, stream.channels, stream.units, stream.sampling_rate) == (
        "s",
        ("x",),
        ("",),
        2.0,
    )


class Scripted:
    """A broker of version 5 that answers what it is told to, by the kind of packet."""

    def __init__(self, **answers):
        self.answers, self.heard = answers, []

    @contextlib.asynccontextmanager
    async def __call__(self):
        async def serve(reader, writer):
            while head := await reader.read(2):
                body = await reader.readexactly(head[1])
                self.heard.append((head[0] >> 4, body))
                answer = self.answers.get(f"kind_{head[0] >> 4}", b"")
                writer.write(answer(body) if callable(answer) else answer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


CONNECTED = b"\x20\x03\0\0\0"
# Receive maximum 2, maximum packet size 40.
NARROW = b"\x20\x0b\0\0\x08\x21\0\x02\x27\0\0\0\x28"


def test_no_more_is_sent_than_the_broker_wants_at_once():
    broker = Scripted(kind_1=NARROW)

    async def main():
        async with broker() as port, connected(port, version="mqtt5") as connection:
            line = connection._line
            publications = [line.publish("t", b"%d" % n, 1, False) for n in range(5)]
            with pytest.raises(Refused, match="0x95"):
                await connection.publish("t", b"x" * 60)
            await until(lambda: [kind for kind, _ in broker.heard].count(3) == 2)
            await asyncio.sleep(0.05)
            sent = [body[3:5] for kind, body in broker.heard if kind == 3]
            assert len(sent) == 2
            line.data_received(b"\x40\x02" + sent[0])  # the broker has the first
            assert await publications[0] == 0
            await until(lambda: [kind for kind, _ in broker.heard].count(3) == 3)
            assert not publications[1].done()

    run(main())


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"kind_1": b"\x20\x03\0\x87\0"}, "does not let us in: not authorized"),
        ({"kind_1": CONNECTED, "kind_3": b"\xe0\x02\x8b\0"}, "ended it: server shutting down"),
        ({"kind_1": CONNECTED, "kind_3": b"\0\0"}, "sent what is no MQTT"),
    ],
)
def test_how_the_broker_ends_it_is_told(answers, said, caplog):
    async def main():
        async with (
            Scripted(**answers)() as port,
            connected(port, wait=False, version="mqtt5") as connection,
        ):
            with contextlib.suppress(Unavailable):
                await connection.publish("t", b"x", timeout=2.0)
            await until(lambda: said in caplog.text)

    run(main())


def test_a_broker_that_says_nothing_any_more_is_gone(monkeypatch, caplog):
    async def main():
        async with (
            Scripted(kind_1=CONNECTED)() as port,
            connected(port, version="mqtt5", keepalive_s=1),
        ):
            await until(lambda: "no word from the broker for" in caplog.text, 5.0)

    run(main())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_packets_that_arrive_in_pieces_are_put_together(size):
    got = []

    async def main():
        line = Mqtt5Line(Broker(driver="mqtt5"), 1, lambda *message: got.append(message))
        data = b"".join(mqtt5.PublishPacket(f"t/{n}", b"x" * n * 50).write() for n in range(4))
        for start in range(0, len(data), size):
            line.data_received(data[start : start + size])

    run(main())
    assert got == [(f"t/{n}", b"x" * n * 50, 0, False, 0) for n in range(4)]


def test_a_driver_that_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sensors.mqtt5_line", None)
    with pytest.raises(ValueError, match=r'pip install "adaptive-attention\[fast\]"'):
        drivers.driver("mqtt5")
