"""What happens to samples between a source and the controller, one sample at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sensors.alignment import Fill as Fill
from sensors.alignment import Resample as Resample
from sensors.features import Features as Features
from sensors.features import Pca as Pca
from sensors.features import Standardise as Standardise
from sensors.filters import Bandpass as Bandpass
from sensors.filters import Notch as Notch
from sensors.sample import Sample, Stream


@runtime_checkable
class Transform(Protocol):
    """Options of a transform of one stream; its memory is a state of its own.

    The state is a tuple, maybe of tuples, of NumPy arrays and numbers, so that it can be written
    to disk as it is. What is derived from the options may be in it: a state goes with the options
    that it was made with. Sequence numbers and times are those of the input, unless the transform
    says otherwise.
    """

    def output(self, stream: Stream) -> Stream:
        """Return what the stream is like behind the transform.

        Raises:
            ValueError: The options do not fit the stream; it says what to do.
        """
        ...

    def init(self, stream: Stream) -> Any:
        """Return the state before the first sample of `stream`, as it is before the transform.

        Raises:
            ValueError: As `output`.
        """
        ...

    def step(self, state: Any, sample: Sample) -> tuple[Any, list[Sample]]:
        """Take the next sample, and return the state afterwards and what comes out, if anything.

        Neither the state nor the sample is changed.
        """
        ...


class ChainState(NamedTuple):
    """The states of the links of a chain."""

    links: tuple[Any, ...]


@dataclass(frozen=True)
class Chain:
    """Several transforms, one behind the other, as one; without any, samples pass as they are.

    Args:
        transforms: From the source to the controller.
    """

    transforms: tuple[Transform, ...] = ()

    def output(self, stream: Stream) -> Stream:
        """Return the stream behind the last transform; see `Transform`."""
        for transform in self.transforms:
            stream = transform.output(stream)
        return stream

    def init(self, stream: Stream) -> ChainState:
        """Return the states of all before the first sample; see `Transform`."""
        states = []
        for transform in self.transforms:
            states.append(transform.init(stream))
            stream = transform.output(stream)
        return ChainState(tuple(states))

    def step(self, state: ChainState, sample: Sample) -> tuple[ChainState, list[Sample]]:
        """Pass the next sample through all; see `Transform`."""
        states, samples = [], [sample]
        for transform, link in zip(self.transforms, state.links, strict=True):
            passed: list[Sample] = []
            for one in samples:
                link, out = transform.step(link, one)
                passed += out
            states.append(link)
            samples = passed
        return ChainState(tuple(states)), samples


def chain(transforms: Iterable[Transform]) -> Chain:
    """Return several transforms as one, in their order."""
    return Chain(tuple(transforms))
