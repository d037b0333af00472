"""What travels between the agent and the process that its models run in."""

from typing import Any

import msgspec
import numpy as np

ARRAY = 1  # the type of arrays among MessagePack's extensions


class Array(msgspec.Struct, array_like=True):
    """An array on its way between two processes of one machine."""

    kind: str
    shape: tuple[int, ...]
    content: bytes


def extend(thing: Any) -> msgspec.msgpack.Ext:
    """Make of an array what MessagePack can hold."""
    if not isinstance(thing, np.ndarray | np.generic):
        raise TypeError(f"cannot be sent: {type(thing)}")
    array = Array(thing.dtype.str, thing.shape, thing.tobytes())
    return msgspec.msgpack.Ext(ARRAY, msgspec.msgpack.encode(array))


def restored(code: int, content: memoryview) -> np.ndarray:
    """Make an array of what `extend` made of it."""
    array = msgspec.msgpack.decode(content, type=Array)
    return np.frombuffer(array.content, array.kind).reshape(array.shape)


encode = msgspec.msgpack.Encoder(enc_hook=extend).encode
decode = msgspec.msgpack.Decoder(ext_hook=restored).decode
