import asyncio
import logging
import time

import pytest

from adaptive import heartbeat
from adaptive.heartbeat import EVERY, Heartbeat


def test_it_beats_and_knows_how_late_it_was(virtual_time):
    beats, late = [], 0.02

    async def main():
        clock = asyncio.get_running_loop().time
        heart = Heartbeat(lambda: beats.append(clock()))
        beating = asyncio.create_task(heart.run())
        await asyncio.sleep(100 * EVERY)
        real = heart.lag.largest
        asyncio.get_running_loop()._jumping.now += EVERY + late  # everything stood still
        await asyncio.sleep(2 * EVERY)
        beating.cancel()
        return heart, real

    heart, before = virtual_time.run(main())
    assert before == pytest.approx(0.0, abs=1e-6)
    assert heart.lag.largest == pytest.approx(late, abs=EVERY)
    assert heart.lag.largest >= late
    assert heart.lag.count == len(beats) > 99


def test_a_loop_that_stands_still_is_told_once_and_where(caplog, monkeypatch):
    monkeypatch.setattr(heartbeat, "GLANCE", 0.02)

    def stands_still():
        time.sleep(0.3)

    async def main():
        heart = Heartbeat()
        beating = asyncio.create_task(heart.run())
        await asyncio.sleep(0.05)
        assert heart.stalls == 0
        stands_still()
        await asyncio.sleep(0.05)
        assert heart.stalls == 1
        stands_still()
        beating.cancel()
        return heart

    with caplog.at_level(logging.WARNING):
        heart = asyncio.run(main())
    assert heart.stalls == 2
    assert caplog.text.count("stood still") == 2
    assert caplog.text.count("in stands_still") == 2
    assert heart.lag.largest > 0.2


def test_it_is_not_watched_any_more_when_it_has_ended(caplog, monkeypatch):
    monkeypatch.setattr(heartbeat, "GLANCE", 0.01)

    async def main():
        heart = Heartbeat()
        beating = asyncio.create_task(heart.run())
        await asyncio.sleep(0.02)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        return heart

    heart = asyncio.run(main())
    time.sleep(0.1)
    assert heart.stalls == 0
    assert caplog.text == ""
