"""State on disk: one file of arrays and a JSON header, whole or not there at all.

Arrays are stored in the format of safetensors, the header in its metadata, with a checksum over
both. A new checkpoint is written aside, brought to the disk, and renamed, so that a power cut or
`kill -9` at any moment leaves a whole one; the one before is kept as `NAME.previous`. Nothing is
pickled. Saving in a thread keeps no other waiting: arrays are not copied, and whatever takes long
is done without the interpreter.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode

VERSION = 14  # of the format of the file
DEEP = 6  # levels of the header that are encoded one by one
TYPES = {  # of arrays in NumPy and in safetensors
    "b1": "BOOL",
    **{f"{kind.lower()}{bits // 8}": f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)},
    **{f"f{bits // 8}": f"F{bits}" for bits in (16, 32, 64)},
}
LOG = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint could not be saved or loaded.

    Attributes:
        reason: `missing`, `corrupt`, `version`, `fingerprint`, `content` or `unwritable`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Name settings by a short hash: the same for equal settings, in whatever order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def save(
    path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any], fingerprint: str
) -> None:
    """Write a checkpoint; on return it is on the disk, and the one before is kept.

    Args:
        path: Where to; one process at a time.
        arrays: By name; any shape, also () and (0,), of bools, integers or floats.
        header: What JSON can hold.
        fingerprint: Of the settings without which the arrays mean nothing; see `fingerprint`.

    Raises:
        CheckpointError: The content cannot be stored, or the folder not be written to. The
            checkpoint that was there is untouched.
    """
    try:
        plain = {name: _plain(array) for name, array in arrays.items()}
        text = _text(header, DEEP)
        metadata = {
            "version": str(VERSION),
            "fingerprint": fingerprint,
            "header": text,
            "checksum": _checksum(plain, text),
        }
        head, order = _head(plain, metadata)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            "content",
            f"{path}: arrays must be of bools, integers or floats and the header what JSON can "
            f"hold, without NaN; got {type(error).__name__}: {error}.",
        ) from error
    partial = path.with_name(path.name + ".partial")
    try:
        _write(partial, (head, *(_bytes(plain[name]) for name in order)))
        if _whole(path):
            _keep(path)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise _unwritable(path, error) from error


def load(path: Path, fingerprint: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the newest whole checkpoint; if that is not the newest, say so in the log.

    Args:
        path: As given to `save`.
        fingerprint: As given to `save`.

    Returns:
        The arrays and the header.

    Raises:
        CheckpointError: There is none; none is whole; or it is of another version of the format
            or of other settings.
    """
    # The partial one is whole if the process died just before it could be renamed; where no hard
    # links are to be had, it may then be the only one.
    candidates = [path, *(path.with_name(path.name + end) for end in (".previous", ".partial"))]
    problem: CheckpointError | None = None
    for candidate in candidates:
        try:
            found = _read(candidate, fingerprint)
        except CheckpointError as error:
            if error.reason not in ("missing", "corrupt"):
                raise
            if problem is None or problem.reason == "missing" != error.reason:
                problem = error
            continue
        if problem is not None:
            LOG.warning("%s Going on from %s.", problem, candidate)
        return found
    assert problem is not None
    raise problem


def check_writable(path: Path) -> None:
    """Make the folder of a checkpoint and try whether it can be written to, before the start.

    Raises:
        CheckpointError: It cannot.
    """
    trial = path.with_name(path.name + ".trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        _write(trial, ())
        trial.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "unwritable",
        f"{path}: the folder of the checkpoint must exist and be writable, got "
        f"{type(error).__name__}: {error.strerror or error}. Name another in the configuration.",
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """Bring an array into the order of elements and bytes of the file."""
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Hash names, types, shapes, contents and header; safetensors itself has no checksum."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array, not copied: `tobytes` holds the interpreter while it copies."""
    return array.reshape(-1).view(np.uint8).data


def _text(value: Any, depth: int) -> str:
    """As `json.dumps`, in small parts: in one it keeps the interpreter until it is done."""
    if depth and isinstance(value, Mapping):
        parts = (f"{json.dumps(str(key))}: {_text(one, depth - 1)}" for key, one in value.items())
        return "{" + ", ".join(parts) + "}"
    if depth and isinstance(value, list | tuple):
        return "[" + ", ".join(_text(one, depth - 1) for one in value) + "]"
    return json.dumps(value, allow_nan=False)


def _head(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """What stands before the arrays in a file of safetensors, and the order in which they follow.

    Raises:
        KeyError: An array is of a type that cannot be stored.
    """
    # The widest first, so that each begins where its type may.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    about: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        array = arrays[name]
        start, end = end, end + array.nbytes
        about[name] = {
            "dtype": TYPES[array.dtype.str[1:]],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = _text(about, 1).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file and bring it to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _keep(path: Path) -> None:
    """Keep the present checkpoint as the previous one, without a moment in which it is not there.

    A second name is made and moved over the previous one. Without hard links (FAT) the present
    one is moved, and `load` then finds it as the previous one.
    """
    previous, link = path.with_name(path.name + ".previous"), path.with_name(path.name + ".link")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def _whole(path: Path) -> bool:
    """Say whether a file is as long as its own head says, so that a torn one is never kept."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size
            if length > size:
                return False
            tensors = json.loads(file.read(length))
    except (OSError, struct.error, ValueError):
        return False
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _read(path: Path, fingerprint: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read one file and hold its checksum, its version and its fingerprint."""
    try:
        blob = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError("missing", f"{path}: there is no checkpoint.") from None
    except OSError as error:
        raise CheckpointError(
            "corrupt", f"{path}: the checkpoint cannot be read, got {error}."
        ) from error
    try:
        (length,) = struct.unpack("<Q", blob[:8])
        metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
        version = metadata["version"]
        if version != str(VERSION):
            raise CheckpointError(
                "version",
                f"{path}: the checkpoint must be of format {VERSION}, got {version}. It is of "
                "another release; move it away to start anew.",
            )
        arrays = decode(blob)
        if _checksum(arrays, metadata["header"]) != metadata["checksum"]:
            raise ValueError("the checksum differs")
        found, header = metadata["fingerprint"], json.loads(metadata["header"])
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "corrupt",
            f"{path}: the checkpoint is torn or damaged, got {type(error).__name__}: {error} in "
            f"{len(blob)} bytes.",
        ) from error
    if found != fingerprint:
        raise CheckpointError(
            "fingerprint",
            f"{path}: the checkpoint must be of the settings {fingerprint}, got {found}. It was "
            "made with others; go back to them, or move it away to start anew.",
        )
    return arrays, header
