"""The state of everything that runs, as named arrays and plain numbers, for a checkpoint.

Taken while samples come, it keeps none waiting: the engines copy their state at one moment and hand
it out piece by piece, when there is nothing else to do; the rest is taken stream by stream. Of a
stream it then knows at most some samples that its model has not seen, as if these had been queued,
or the model some whose answers were not settled yet.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adaptive.bank import Bank, Track

PIECE = 2**18  # [bytes] that are asked for at once: some tenths of a millisecond
PATIENCE, GLANCE = 20, 1e-3  # how often a piece gives way to what waits, and how long [s]


class Snapshot:
    """State in the making.

    Attributes:
        arrays: By name.
        header: What JSON can hold.
    """

    def __init__(self, banks: Sequence[Bank], tracks: Mapping[str, Track]):
        """Begin with nothing."""
        self.banks, self.tracks = banks, tracks
        self.arrays: dict[str, np.ndarray] = {}
        self.header: dict[str, Any] = {"banks": [], "tracks": {}}

    def take(self) -> None:
        """Take everything at once."""
        for number, bank in enumerate(self.banks):
            self._add(f"bank.{number}", bank.controller.engine.arrays())
        for _ in self._streams():
            pass

    async def take_beside(self, model: asyncio.Lock, busy: Callable[[], bool]) -> None:
        """Take everything while samples are answered.

        Args:
            model: Held while a model is at work.
            busy: Whether something waits that a piece should give way to.
        """
        async with model:  # it is not moving
            kept = [await bank.controller.engine.beside("keep") for bank in self.banks]
        for _ in self._streams():
            await asyncio.sleep(0)
        for number, tables in enumerate(kept):
            engine = self.banks[number].controller.engine
            for name, (kind, shape) in tables.items():
                array = np.empty(tuple(shape), kind)
                content = array.reshape(-1).view(np.uint8)
                for start in range(0, len(content), PIECE):
                    for _ in range(PATIENCE):
                        if not busy():
                            break
                        await asyncio.sleep(GLANCE)
                    async with model:
                        piece = await engine.beside("piece", name, start, PIECE)
                    content[start : start + PIECE] = piece
                self.arrays[f"bank.{number}.{name}"] = array

    def _streams(self) -> Iterator[None]:
        """Take all but the engines' arrays, stream by stream."""
        for number, bank in enumerate(self.banks):
            plain, controller = [], bank.controller
            for stream in range(controller.streams):
                own, said = controller.kept(stream)
                self._add(f"bank.{number}", own)
                plain.append(said)
                yield
            members = {"members": plain, "due": list(controller.due)}
            saved = {"controller": members, "governor": bank.governor.snapshot()}
            self.header["banks"].append(saved)
        for number, (name, track) in enumerate(self.tracks.items()):
            own = {f"pending.{key}": array for key, array in track.pending.snapshot().items()}
            own |= {f"state.{key}": value for key, value in leaves(track.state)}
            # Some are counted on in place.
            self._add(f"track.{number}", {key: np.array(array) for key, array in own.items()})
            self.header["tracks"][name] = {
                "counters": track.counters.snapshot(),
                "latency": track.latency.snapshot(),
                "newest": track.newest if np.isfinite(track.newest) else None,
            }
            yield

    def _add(self, where: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays |= {f"{where}.{name}": array for name, array in arrays.items()}


def leaves(tree: Any, path: str = "") -> list[tuple[str, np.ndarray]]:
    """The arrays and numbers of nested tuples, by their place."""
    if isinstance(tree, tuple):
        return [leaf for i, part in enumerate(tree) for leaf in leaves(part, f"{path}/{i}")]
    return [] if tree is None else [(path, np.asarray(tree))]


def filled(tree: Any, values: dict[str, np.ndarray], path: str = "") -> Any:
    """The same nested tuples with other arrays and numbers in them."""
    if isinstance(tree, tuple):
        parts = [filled(part, values, f"{path}/{i}") for i, part in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if tree is None or path not in values:
        return tree
    return values[path] if isinstance(tree, np.ndarray) else values[path].item()
