import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
from collections import deque
from importlib.resources import files
from math import inf, nan
from types import SimpleNamespace

import numpy as np
import pytest

from adaptive import commands
from adaptive.bank import Bank, Track
from adaptive.config import PageSettings
from adaptive.controller import Answer, Controller, Estimate, Explanation
from adaptive.engine import Engine
from adaptive.feedback import Pending
from adaptive.governor import Governor
from adaptive.health import Health
from adaptive.loop import Loop
from adaptive.memory import Memory
from adaptive.outlet import Outlet
from adaptive.page import answers, guard, server, trace, view, watcher
from adaptive.page.watcher import Watcher
from adaptive.settings import EXPERTS, Model
from adaptive.sinks import Result
from adaptive.surprise import USUAL
from adaptive.telemetry import Quantiles
from sensors.sample import Sample, Stream, Unavailable
from sensors.testing import ListSource
from sensors.transforms import Chain

SMALL = Model(memory_samples=512, window_samples=16, dim=8, heads=2)  # as in test_agent.py
STREAM = Stream("ecg", ("II", "V1"), ("mV", "mV"), 100.0)


class Many(Controller):
    """Only says how many streams it has."""

    def __init__(self, streams):
        self.streams, self.channels, self.levels = streams, 2, SMALL.ladder()


def track_of(stream, bank, number=0):
    chain = Chain(())
    return Track(stream, bank, number, 0.05, chain, chain.init(stream), Pending(512), stream)


def several(many):
    """A loop of so many streams in two banks, which does not run."""
    banks = [Bank(Many(many - many // 2), Governor()), Bank(Many(many // 2), Governor())]
    tracks = {
        f"bed-{n}": track_of(STREAM._replace(name=f"bed-{n}"), banks[n % 2]) for n in range(many)
    }
    return Loop([], tracks, banks)


def health_of(loop):
    return Health(loop, False, Memory(inf))


def watching(loop, find="", chosen=None):
    return Watcher(loop, health_of(loop), 0.0, find, chosen)


def sample(n, stream="ecg"):
    return Sample(stream, n, n / 100, np.array([np.sin(n / 5), float(n)]))


def result(n, value=0.0, alarm=False, channels=2):
    why = Explanation(
        np.arange(8), np.arange(8) / 28, np.array([0.25, 0.75]), np.ones(len(EXPERTS)),
        np.ones(2), "delta",
    )  # fmt: skip
    ahead = np.full((1, channels), value + 1, np.float32)
    estimate = Estimate(0, n, 2, USUAL, "unlike the past", ahead, ahead, why, None)
    names = tuple(f"c{k}" for k in range(channels))
    one = Sample("ecg", n, n / 100, np.full(channels, value))
    answer = Answer(estimate, 0.5, 0.01, 0.5, alarm, False, nan)
    return Result(one, answer, "full", float(n), n + 1.0, names)


# --- what is shown ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_account_adds_up_in_every_message_while_streams_go_on_counting():
    loop, rng = several(200), np.random.default_rng(0)
    one, seen = watching(loop), []
    for step in range(60):
        for track in loop.tracks.values():
            counters = track.counters
            counters.arrived(counters.newest + 1, float(step))
            chance = rng.random()
            if counters.in_flight > 1 and chance < 0.5:
                counters.answered(int(rng.integers(-1, len(SMALL.ladder()))), 0.1)
            elif chance < 0.6:
                counters.give_up("sink_full")
        one.step(float(step))
        account = one.message(float(step))["account"]
        out = account["full"] + account["mandatory"] + account["shed"] + account["in_flight"]
        assert account["received"] == out
        assert sum(account["shed_by"].values()) == account["shed"]
        seen.append(account["received"])
    assert seen[-1] > 40 * 200 > seen[5] > 0
    for bank in range(2):  # and each bank's is its own
        shown = one.message(0.0)["banks"][bank]
        assert sum(shown["answers"].values()) > shown["mandatory"] > 0


class Away:
    """A sink that takes nothing."""

    async def write(self, results):
        raise Unavailable("away")

    async def close(self):
        """Do nothing."""


def test_answers_that_a_sink_does_not_take_are_not_in_time():
    loop = several(2)
    loop.outlets = [Outlet(Away(), random.Random(0))]
    deadline = min(track.deadline for track in loop.tracks.values())
    waiting = SimpleNamespace(deadline=10.0)
    for now, found in ((9.0, True), (10.0 + 2 * deadline, False)):
        loop.outlets[0].outbox = deque([(waiting, None)])
        told = view.able(loop, health_of(loop), now)
        assert (told["in_time"], told["sinks_behind"]) == (
            found,
            [] if found else ["Away"],
        )
    loop.outlets[0].outbox.clear()
    assert view.able(loop, health_of(loop), now)["in_time"]


def test_a_message_is_of_bounded_size_and_has_the_streams_that_are_worth_looking_at_first():
    loop = several(2000)
    for n, last in ((7, 1.0), (3, 2.0)):
        loop.tracks[f"bed-{n}"].alarms.append(result(0, alarm=True)._replace(arrival=last))
    for n, missed in ((1900, 5), (1800, 9)):
        loop.tracks[f"bed-{n}"].counters.missed = missed
    one, steps = watching(loop), 0
    while not one.complete:
        one.step(0.0)
        steps += 1
    assert steps <= 2000 / watcher.AT_ONCE + 10
    message = one.message(0.0)
    names = [line["name"] for line in message["streams"]["lines"]]
    assert names[:5] == ["bed-3", "bed-7", "bed-1800", "bed-1900", "bed-0"]
    assert len(names) == watcher.LISTED
    assert message["streams"]["in_all"] == message["streams"]["found"] == 2000
    assert len(server.ENCODER.encode(message)) < 32_768
    found = watching(loop, "ED-199")
    while not found.complete:
        found.step(0.0)
    streams = found.message(0.0)["streams"]
    assert {line["name"] for line in streams["lines"]} == {
        name for name in loop.tracks if "ed-199" in name
    }
    assert streams["found"] == len(streams["lines"]) == 11


def test_what_is_not_finite_becomes_null():
    loop = several(2)
    track = loop.tracks["bed-0"]
    one = watching(loop, chosen=track)
    one.open()
    one.chosen.onlookers[0](result(0, nan))
    while not one.complete:
        one.step(0.0)

    def refuse(constant):
        raise AssertionError(constant)

    text = server.ENCODER.encode(one.message(0.0))
    shown = json.loads(text, parse_constant=refuse)
    assert shown["account"]["in_time"] is None
    assert shown["chosen"]["points"]["values"] == [[None], [None]]
    assert shown["chosen"]["p50_ms"] is None


def test_a_histogram_has_all_that_was_counted_where_it_was():
    quantiles, values = Quantiles(), np.random.default_rng(0).lognormal(-4, 1, 500)
    for value in (*values, 0.0, 1e9):
        quantiles.add(float(value))
    shown = view.histogram(quantiles)
    assert sum(shown["counts"]) == 502
    edges = shown["low"] * shown["ratio"] ** np.arange(len(shown["counts"]) + 1)
    exact = np.histogram(values, edges)[0]
    wrong = np.abs(np.array(shown["counts"][1:-1]) - exact[1:-1]).sum()
    assert wrong <= 4  # of rounding at an edge
    assert view.histogram(Quantiles())["counts"] == [0]


def test_an_alarm_says_what_it_attended_to_most_and_its_time_as_it_came():
    one = result(3, alarm=True)
    shown = view.alarm(one)
    assert shown["time"] == one.sample.time
    assert [samples for samples, _ in shown["moments"]] == [7, 6, 5, 4, 3]
    assert shown["channels"] == [("c1", 0.75), ("c0", 0.25)]
    assert "mostly c1" in shown["reason"]


# --- what is kept -------------------------------------------------------------------------------


def test_a_point_has_the_forecast_that_was_made_for_it():
    kept = trace.Trace(2)
    for n, value in ((0, 5.0), (1, 6.0), (4, 7.0), (5, 8.0)):  # two samples are missing
        kept.show(result(n, value))
    points = kept.take()
    assert points["time"] == [0.0, 0.01, 0.04, 0.05]
    assert points["values"] == [[5.0, 6.0, 7.0, 8.0]] * 2
    np.testing.assert_equal(points["forecast"], [[nan, 6.0, nan, 8.0]] * 2)
    np.testing.assert_equal(points["spread"], [[nan, 6.0, nan, 8.0]] * 2)
    assert kept.take() == {"time": [], "score": [], "values": [[], []]} | {
        "forecast": [[], []],
        "spread": [[], []],
    }
    kept.show(result(6, 9.0))
    assert kept.take()["forecast"] == [[9.0]] * 2


def test_of_many_points_only_some_are_kept_and_fewer_are_shown():
    kept = trace.Trace(40)
    for n in range(3 * trace.KEPT):
        kept.show(result(n, channels=40))
    assert len(kept.points) == trace.KEPT
    points = kept.take()
    assert len(points["time"]) <= trace.SHOWN
    assert len(points["values"]) == view.CHANNELS


def test_nothing_is_kept_of_a_stream_that_nobody_looks_at():
    loop = several(2)
    track = loop.tracks["bed-0"]
    one, other = watching(loop, chosen=track), watching(loop, chosen=track)
    assert track.onlookers == ()
    one.open()
    other.open()
    track.onlookers[1](result(0))
    one.close()
    assert len(track.onlookers) == 1
    assert len(other.message(0.0)["chosen"]["points"]["time"]) == 1
    other.close()
    assert track.onlookers == ()


# --- who may see it -----------------------------------------------------------------------------

HERE = PageSettings(port=8765)
OPEN = PageSettings(port=8765, host="0.0.0.0", token="secret")
NAMED = PageSettings(port=80, host="ward.example", token="secret")
REQUESTS = {
    "its address": (HERE, "GET", {"host": "127.0.0.1:8765"}, "", None),
    "its name": (HERE, "GET", {"host": "localhost:8765"}, "", None),
    "the other address": (HERE, "GET", {"host": "[::1]:8765"}, "", None),
    "no host": (HERE, "GET", {}, "", 421),
    "a name that leads here": (HERE, "GET", {"host": "evil.example:8765"}, "", 421),
    "another port": (HERE, "GET", {"host": "127.0.0.1:80"}, "", 421),
    "its own post": (HERE, "POST", {"host": "localhost:8765", "origin": "http://localhost:8765"},
                     "", None),
    "a script's post": (HERE, "POST", {"host": "localhost:8765"}, "", None),
    "another's post": (HERE, "POST", {"host": "localhost:8765", "origin": "http://evil.example"},
                       "", 403),
    "a post of nobody": (HERE, "POST", {"host": "localhost:8765", "origin": "null"}, "", 403),
    "any address": (OPEN, "GET", {"host": "192.0.2.7:8765"}, "secret", None),
    "any name": (OPEN, "GET", {"host": "evil.example:8765"}, "secret", 421),
    "no token": (OPEN, "GET", {"host": "192.0.2.7:8765"}, "", 401),
    "a wrong token": (OPEN, "GET", {"host": "192.0.2.7:8765"}, "secre", 401),
    "a cookie": (OPEN, "GET", {"host": "192.0.2.7:8765", "cookie": "a=b; adaptive-token=secret"},
                 "", None),
    "a wrong cookie": (OPEN, "GET", {"host": "192.0.2.7:8765", "cookie": "adaptive-token=x"},
                       "", 401),
    "a token that is no text": (OPEN, "GET", {"host": "192.0.2.7:8765"}, "\xe9", 401),
    "a link from elsewhere": (HERE, "GET", {"host": "localhost:8765", "sec-fetch-mode": "navigate",
                              "sec-fetch-site": "cross-site"}, "", None),
    "a picture of elsewhere": (HERE, "GET", {"host": "localhost:8765", "sec-fetch-mode": "no-cors",
                               "sec-fetch-site": "cross-site"}, "", 403),
    "a script of elsewhere": (HERE, "GET", {"host": "localhost:8765",
                              "origin": "http://evil.example"}, "", 403),
    "its own script": (HERE, "GET", {"host": "localhost:8765", "sec-fetch-site": "same-origin",
                       "sec-fetch-mode": "cors"}, "", None),
    "a hostile cookie": (OPEN, "GET", {"host": "192.0.2.7:8765", "cookie": 'a="' + "\\" * 3000},
                         "", 401),
    "the usual port": (NAMED, "GET", {"host": "ward.example"}, "secret", None),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_who_may_see_the_page_and_who_may_not(what):
    settings, method, headers, token, status = REQUESTS[what]
    refusal = guard.refused(settings, method, headers, token)
    assert (refusal and refusal.status) == status
    if refusal:
        assert re.match(r"[\w-]+: wanted .+, got .+\.", refusal.reason)
        assert "secret" not in refusal.reason


# --- answers to alarms --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    return Engine(1, 2, SMALL)  # compiles nothing: answers are mandatory


def running(engine, count=3000, interval=0.002):
    """A loop whose models are never ready."""

    async def never():
        await asyncio.sleep(1e9)

    bank = Bank(Controller(1, 2, SMALL, engine=engine), Governor())
    source = ListSource((STREAM,), tuple(sample(n) for n in range(count)), interval)
    return Loop([source], {"ecg": track_of(STREAM, bank)}, [bank], prepare=never)


BAD = {
    "not JSON": (b"label=1", 400, "wanted JSON"),
    "no label": (b'{"stream": "ecg", "time": 1}', 400, "wanted"),
    "another label": (b'{"stream": "ecg", "time": 1, "label": 2}', 400, "wanted label 1 .* got 2"),
    "label that is no number": (b'{"stream": "ecg", "time": 1, "label": "1"}', 400, "got `str`"),
    "no such stream": (b'{"stream": "eeg", "time": 1, "label": 1}', 404, "'ecg'.* got 'eeg'"),
    "a time to come": (b'{"stream": "ecg", "time": 9, "label": 1}', 404, "got 9.0, .*to come"),
    "no such time": (b'{"stream": "ecg", "time": -9, "label": 1}', 404, "got -9.0, .*is none"),
    "too long": (b" " * 5000, 400, "at most 4096"),
    "samples": (b'{"stream": "ecg", "time": 1, "values": [1, 2]}', 400, "wanted feedback"),
}


def test_an_answer_to_an_alarm_is_counted_and_learned_and_one_that_is_none_is_refused(
    engine, virtual_time
):
    loop = running(engine, 200)
    virtual_time.run(loop.run())
    for what, (payload, status, words) in BAD.items():
        got, content = answers.take(loop.tracks, payload)
        assert got == status, what
        assert re.search(words, content["error"]), content
    assert loop.tracks["ecg"].counters.feedback["learned"] == 0
    payload = b'{"stream": "ecg", "time": 1.5, "label": 1}'
    status, content = answers.take(loop.tracks, payload)
    assert (status, content["said"], content["learned"]) == (200, "counted", 1)
    status, content = answers.take(loop.tracks, payload)
    assert (status, content["learned"]) == (200, 1)
    assert "before" in content["said"]


def test_what_was_answered_to_an_alarm_is_shown_to_whoever_looks_later(engine, virtual_time):
    loop = running(engine, 200)
    virtual_time.run(loop.run())
    track = loop.tracks["ecg"]
    for index in (180, 150):
        raised = result(0, alarm=True)
        at = raised.answer._replace(estimate=raised.answer.estimate._replace(index=index))
        track.alarms.append(raised._replace(answer=at))
    one = watching(loop, chosen=track)
    while not one.complete:
        one.step(0.0)

    def labels():
        return [alarm["label"] for alarm in one.message(0.0)["chosen"]["last_alarms"]]

    assert labels() == [None, None]
    for label in (1, 0):
        answers.take(loop.tracks, b'{"stream": "ecg", "time": 1.5, "label": %d}' % label)
        assert labels() == [label, None]
    stretch = b'{"stream": "ecg", "time": 1.75, "duration_s": 0.1, "label": 1}'
    for told in (b'{"stream": "ecg", "time": -0.5, "label": 0}', stretch):
        assert labels() == [0, None]
        answers.take(loop.tracks, told)
    assert labels() == [0, 1]


# --- the server ---------------------------------------------------------------------------------


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def ask(port, path, method="GET", body=b"", **headers):
    """One request; returns status, headers, reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {"host": f"127.0.0.1:{port}", "content-length": str(len(body))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    got = dict(line.lower().split(": ", 1) for line in rest if line)
    return int(status.split()[1]), got, reader, writer


async def fetched(port, path, method="GET", body=b"", **headers):
    status, got, reader, writer = await ask(port, path, method, body, **headers)
    content = await reader.readexactly(int(got["content-length"]))
    writer.close()
    return status, got, content


async def messages(reader):
    """The messages of an event stream, until it ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            chunk = await reader.readexactly(size + 2)
            yield json.loads(chunk.removeprefix(b"data: "))


@contextlib.asynccontextmanager
async def served(loop, **settings):
    page = server.opened(PageSettings(port=free_port(), **settings), loop, health_of(loop))
    task = asyncio.create_task(page.run())
    try:
        yield page, page.settings.port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
def test_the_stream_of_messages_grows_and_ends_with_the_agent_within_a_second(engine):
    loop, port = running(engine), free_port()
    page = server.opened(PageSettings(port=port), loop, health_of(loop))
    agent = SimpleNamespace(run=loop.run, loop=loop, config=SimpleNamespace(sinks=()))

    async def main():
        args = argparse.Namespace(for_s=None, no_table=True)
        agent_task = asyncio.create_task(commands.supervise(agent, args, page))
        status, headers, reader, _ = await ask(port, "/events?stream=ecg")
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        counts, points = [], 0
        async for message in messages(reader):
            counts.append(message["account"]["received"])
            points += len(message["chosen"]["points"]["time"])
            if len(counts) == 3:
                clock = asyncio.get_running_loop().time
                asyncio.get_running_loop().call_soon(stop)
                at = clock()
        assert counts == sorted(set(counts))
        assert 0 < points <= counts[2]
        await agent_task
        assert clock() - at < 1.0
        assert loop.tracks["ecg"].onlookers == ()

    def stop():
        for task in asyncio.all_tasks():
            if task.get_coro().__qualname__ == "Loop.run":
                task.cancel()

    asyncio.run(main())
    loop.check()
    with socket.socket() as again:  # and the port is free
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_warned_of_and_there_is_no_page(caplog):
    loop = several(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = PageSettings(port=taken.getsockname()[1])
        assert server.opened(settings, loop, health_of(loop)) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "in use" in record.getMessage()
    assert "port = 0 for none" in record.getMessage()


def test_every_file_of_the_page_is_in_the_package_and_is_served_under_its_policy():
    static = files("adaptive.page").joinpath("static")
    licence = static.joinpath("uplot/LICENSE").read_text()
    assert "MIT" in licence
    html = static.joinpath("page.html").read_text()
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', html))
    assert linked == set(server.FILES) - {"/"}
    scripts = "".join(static.joinpath(f"{name}.js").read_text() for name in ("page", "plots"))
    for insecure in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert insecure not in scripts

    async def main():
        async with served(several(2)) as (_, port):
            for path in server.FILES:
                status, headers, content = await fetched(port, path)
                assert (status, len(content) > 100) == (200, True)
                assert headers["content-security-policy"].startswith("default-src 'self'")
                assert "set-cookie" not in headers

    asyncio.run(main())


@pytest.mark.slow
def test_requests_are_refused_or_answered_as_the_rules_say(engine, monkeypatch):
    loop = running(engine, 100000)

    async def main():
        async with served(loop, token="secret") as (page, port):
            task = asyncio.create_task(loop.run())
            assert (await fetched(port, "/state"))[0] == 401
            assert (await fetched(port, "/state", host="evil.example"))[0] == 421
            status, headers, _ = await fetched(port, "/?token=secret")
            assert status == 200
            cookie = headers["set-cookie"]
            assert "samesite=strict" in cookie
            assert "httponly" in cookie
            mine = {"cookie": cookie.split(";")[0]}
            status, _, content = await fetched(port, "/state?stream=ecg", **mine)
            shown = json.loads(content)
            assert (status, shown["chosen"]["name"]) == (200, "ecg")
            assert (await fetched(port, "/state?stream=eeg", **mine))[0] == 404
            assert (await fetched(port, "/feedback", **mine))[0] == 405
            body = json.dumps({"stream": "ecg", "time": 0.0, "label": 0}).encode()
            theirs = {"origin": "http://evil.example"}
            assert (await fetched(port, "/feedback", "POST", body, **mine, **theirs))[0] == 403
            status, _, content = await fetched(port, "/feedback", "POST", body, **mine)
            assert (status, json.loads(content)["learned"]) == (200, 1)
            assert loop.tracks["ecg"].counters.feedback["received"] == 1
            status, _, content = await fetched(port, "/health", **mine)
            assert (status, json.loads(content)["ready"]) == (503, False)
            # Whatever goes wrong in the page ends there.
            monkeypatch.setattr(view, "account", lambda sums, strangers: 1 / 0)
            assert (await fetched(port, "/state", **mine))[0] == 500
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            loop.ready.set()
            page.health.heartbeat.newest = 1.0
            assert (await fetched(port, "/health", **mine))[0] == 503  # not in time
            page.health.heartbeat.newest = 0.001
            assert (await fetched(port, "/health", **mine))[0] == 200

    asyncio.run(main())
    loop.check()


def test_one_more_than_may_look_is_told_so_and_may_when_another_has_gone():
    async def main():
        async with served(several(2)) as (page, port):
            opened = [await ask(port, "/events") for _ in range(server.WATCHERS)]
            assert {status for status, *_ in opened} == {200}
            status, _, content = await fetched(port, "/events")
            assert (status, b"at most 8" in content) == (503, True)
            opened[0][-1].close()
            async with asyncio.timeout(5.0):
                while page.watching == server.WATCHERS:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert (await ask(port, "/events"))[0] == 200

    asyncio.run(main())


def test_a_browser_that_takes_nothing_is_not_waited_for_without_end(virtual_time):
    loop = several(2)
    track = loop.tracks["bed-0"]
    settings = PageSettings(port=free_port())
    page = server.opened(settings, loop, health_of(loop))
    page._socket.close()
    sent = []

    async def stuck(message):
        sent.append(message)
        if len(sent) > 3:
            await asyncio.sleep(1e9)

    async def silent():
        await asyncio.sleep(1e9)

    async def main():
        one = watching(loop, chosen=track)
        begun = asyncio.get_running_loop().time()
        await server.Messages(page, one)({}, silent, stuck)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(
            server.PATIENCE + 2 * server.EVERY, rel=0.1
        )

    virtual_time.run(main())
    assert len(sent) == 4  # the head, two messages, and one that was not taken
    assert page.watching == 0
    assert track.onlookers == ()


@pytest.mark.slow
def test_a_long_request_of_anybody_is_refused_unread():
    long = "a=&" * 20_000

    async def main():
        async with served(several(2), token="secret") as (_, port):
            for path, headers in (
                (f"/state?{long}", {}),
                (f"/?{long}", {"host": "evil.example"}),
                ("/state", {"cookie": 'a="' + "\\" * 20_000}),
            ):
                assert (await fetched(port, path, **headers))[0] in (400, 431)
            assert (await fetched(port, "/state?token=secret"))[0] == 200

    asyncio.run(main())
