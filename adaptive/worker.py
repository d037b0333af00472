"""The process that models run in: `python -m adaptive.worker FD`, started by `adaptive.isolation`.

It answers one request after the other, over the socket that it inherits, and ends with it.
"""

import gc
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from adaptive.engine import Engine
from adaptive.frames import decode, encode
from adaptive.settings import Model


def answer(engines: dict[int, Engine], number: int, name: str, args: list) -> Any:
    """Do what was asked of one engine."""
    if name == "make":
        streams, channels, settings = args
        engines[number] = Engine(streams, channels, Model(**settings))
        return engines[number].outputs()
    if name == "freeze":
        # What exists now lives for ever: full collections need not look at it again.
        gc.collect()
        gc.freeze()
        return None
    return getattr(engines[number], name)(*args)


def serve(line: Connection) -> None:
    """Answer until the other side is gone."""
    engines: dict[int, Engine] = {}
    while True:
        try:
            request = line.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            value = answer(engines, *decode(request))
            if isinstance(value, Iterator):
                for step in value:
                    line.send_bytes(encode(("step", step)))
                value = None
            reply = encode(("done", value))
        except Exception:
            reply = encode(("failed", traceback.format_exc()))
        line.send_bytes(reply)


if __name__ == "__main__":
    # Whoever started it says when it ends: by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
