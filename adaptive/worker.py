"""The process that models run in: `python -m adaptive.worker FD`, started by `adaptive.isolation`.

It answers one request after the other, over the socket that it inherits, and ends with it.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from adaptive.engine import Engine
from adaptive.frames import decode, encode
from adaptive.garbage import Collector
from adaptive.settings import Level, Model

LOOK = 1.0  # [s] between two looks at whether whoever started us lives


def follow(parent: int) -> None:
    """End when whoever started us has died, also while something is compiled for them."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


def answer(
    engines: dict[int, Engine], collector: Collector, number: int, name: str, args: list
) -> Any:
    """Do what was asked of one engine, or of the process."""
    if name == "make":
        streams, channels, settings = args
        levels = tuple(Level(**level) for level in settings.pop("levels"))
        engines[number] = Engine(streams, channels, Model(**settings, levels=levels))
        return engines[number].outputs()
    if name == "freeze":
        return collector.start()
    if name == "collections":
        return collector.told()
    return getattr(engines[number], name)(*args)


def serve(line: Connection) -> None:
    """Answer until the other side is gone, which may be while an answer is made."""
    engines: dict[int, Engine] = {}
    collector = Collector(time.perf_counter)
    with suppress(EOFError, ConnectionError):
        while True:
            collector.rest(line.poll)
            request = line.recv_bytes()
            for reply in replies(engines, collector, request):
                line.send_bytes(reply)


def replies(engines: dict[int, Engine], collector: Collector, request: bytes) -> Iterator[bytes]:
    """What is said to a request: the steps of what takes long, then how it ended.

    That is a kind, a value, and how long it took [s], of which whoever asked sees more.
    """
    begin = time.perf_counter()
    try:
        value = answer(engines, collector, *decode(request))
        if isinstance(value, Iterator):
            yield from (encode(("step", step, 0.0)) for step in value)
            value = None
        reply = encode(("done", value, time.perf_counter() - begin))
    except Exception:
        reply = encode(("failed", traceback.format_exc(), time.perf_counter() - begin))
    yield reply


if __name__ == "__main__":
    # Whoever started it says when it ends: by closing the socket.
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
