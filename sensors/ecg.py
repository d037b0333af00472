"""An electrocardiogram out of a dynamical model, with what goes wrong in hearts and electrodes."""

import importlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import scipy

from sensors.truth import Block, Event, quiet_stretches

# Lead directions in the body: x to the left, y to the feet, z to the chest.
LEADS = {
    "II": (0.5, 0.87, 0.0),
    "V1": (-0.3, 0.0, 0.95),
    "V5": (0.95, 0.1, 0.3),
    "I": (1.0, 0.0, 0.0),
    "aVF": (0.0, 1.0, 0.0),
    "V2": (0.2, 0.0, 1.1),
}
BLOCK = 2.0  # [s] generated at once: short, so that a live stream does not wait for it
QUIET = 1.5  # [s] length of a stretch in which an operator finds nothing


class Waves(NamedTuple):
    """The bumps of one kind of beat."""

    phase: np.ndarray  # [waves] [rad] of the centre, 0 is the R peak
    width: np.ndarray  # [waves] [rad]
    dipole: np.ndarray  # [waves, 3] [mV] in the axes of `LEADS`
    stretch: np.ndarray  # [waves] power of `hurry`, in `add_beat`, that moves the centre


# P, Q, R, S, T: phases and widths of McSharry et al. 2003, table 1.
SINUS = Waves(
    phase=np.array([-1.2, -math.pi / 12, 0.0, math.pi / 12, math.pi / 2]),
    width=np.array([0.25, 0.1, 0.1, 0.1, 0.4]),
    dipole=np.array(
        [
            [0.06, 0.12, 0.05],
            [-0.15, -0.12, 0.30],
            [0.80, 0.90, -0.60],
            [-0.10, -0.25, -0.25],
            [0.20, 0.25, 0.08],
        ]
    ),
    stretch=np.array([0.5, 1.0, 1.0, 1.0, 0.5]),
)
# No P; the wall of the ventricle conducts slowly: a wide R and S, and T against them.
ECTOPIC = Waves(
    phase=np.array([0.0, 0.62, 1.75]),
    width=np.array([0.26, 0.30, 0.45]),
    dipole=np.array([[0.50, 1.35, 0.90], [-0.35, -0.75, -0.20], [-0.20, -0.45, -0.30]]),
    stretch=np.array([1.0, 1.0, 0.5]),
)


class Beat(NamedTuple):
    """One heart beat."""

    peak: float  # [s] of R, since the start of the signal
    interval: float  # [s] RR interval that sets the speed of its phase
    gain: float  # of all its waves; breathing turns and moves the heart
    ectopic: bool


class Artefact(NamedTuple):
    """What an electrode adds to the signal, or shows in its place."""

    first: int  # [samples] since the start of the signal
    values: np.ndarray  # [samples, leads], [samples, 1] if it is one lead's [mV]
    lead: int | None  # the lead that has fallen off and shows only this; None: added to all


@dataclass(frozen=True, kw_only=True)
class EcgSignal:
    """What the simulated electrocardiogram is like.

    With `theta` the phase of a beat, which runs through 2 pi in one RR interval at speed `w`,

        z' = -sum over waves of alpha (w / b^2) dtheta exp(-dtheta^2 / 2 b^2) - (z - z0)

    where `dtheta = theta - theta_wave`. On its limit cycle, where it is started, the model's
    other two equations have the closed form `theta = w (t - t_R)`, and this one is linear: it is
    solved exactly for a right-hand side that is linear between samples. RR intervals follow a
    sum of cosines whose frequencies are drawn from the bimodal spectrum (Mayer waves at 0.1 Hz,
    breathing). A ventricular ectopic beat comes early in place of a sinus beat and leaves the
    rhythm of the sinus node alone, hence the compensatory pause.

    What happens: `ectopic` beats and a lead that falls off, `lead_off`, are confirmed by an
    operator (label 1), `motion` is dismissed (label 0) and so are some `quiet` stretches.

    Args:
        sampling_rate_hz: At least 50.
        leads: How many of `LEADS`, from the first.
        heart_rate_bpm: On average.
        heart_rate_variability_ms: Standard deviation of the RR intervals.
        respiration_hz: Breathing: moves the RR intervals, the baseline and the heart.
        ectopic_share: Share of the beats that are ectopic, up to a third; never two in a row.
        baseline_wander_mv: Amplitude of the baseline's movement.
        mains_hum_mv: Amplitude of the hum of the mains.
        mains_hz: Frequency of the mains.
        noise_mv: Standard deviation of the white noise of the amplifier.
        motion_noise_per_min: Bursts of motion noise per minute.
        lead_off_per_min: How often one of the leads falls off, for some seconds.
        quiet_labels_per_min: How often an operator looks and finds nothing, at most.
        start_time_s: Time of the first sample; the same at each run, unless set.
        seed: The same seed gives the same signal, however much of it is asked for.

    Raises:
        ValueError: An option is out of range.

    References:
        McSharry et al., A dynamical model for generating synthetic electrocardiogram signals,
        IEEE Trans. Biomed. Eng. 50(3), 2003. Unlike theirs, amplitudes are in millivolts instead
        of scaled at the end, and beats may overlap, as ectopic ones do.
        Sameni et al., Multichannel ECG and noise modeling, EURASIP J. Adv. Signal Process., 2007:
        the `w / b^2` and the leads as projections of a dipole. Our dipoles are chosen by eye.
        Shinozuka, Simulation of multivariate and multidimensional random processes, JASA 49,
        1971: the sum of cosines; unlike an inverse FFT it has no end.
    """

    sampling_rate_hz: float = 360.0
    leads: int = 2
    heart_rate_bpm: float = 70.0
    heart_rate_variability_ms: float = 40.0
    respiration_hz: float = 0.25
    ectopic_share: float = 0.08
    baseline_wander_mv: float = 0.1
    mains_hum_mv: float = 0.02
    mains_hz: float = 50.0
    noise_mv: float = 0.01
    motion_noise_per_min: float = 0.3
    lead_off_per_min: float = 0.1
    quiet_labels_per_min: float = 2.0
    start_time_s: float = 0.0
    seed: int = 0

    def __post_init__(self):
        importlib.import_module("scipy.signal")  # takes long: not when the first sample is due
        if self.sampling_rate_hz < 50:
            raise ValueError(
                f"sampling_rate_hz must be at least 50, got {self.sampling_rate_hz}: below, the "
                "R peaks fall between the samples. Simulate faster and resample."
            )
        if not 1 <= self.leads <= len(LEADS):
            raise ValueError(
                f"leads must be 1 to {len(LEADS)} ({', '.join(LEADS)}), got {self.leads}"
            )
        if not 20 <= self.heart_rate_bpm <= 240:
            raise ValueError(f"heart_rate_bpm must be 20 to 240, got {self.heart_rate_bpm}")
        if not 0 <= self.ectopic_share <= 1 / 3:
            raise ValueError(
                f"ectopic_share must be 0 to 1/3, got {self.ectopic_share}: an ectopic beat never "
                "follows another."
            )

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Return the times of samples [s].

        Args:
            numbers: `[samples]`, 0 is the first sample of the signal.
        """
        return self.start_time_s + numbers / self.sampling_rate_hz

    def blocks(self) -> Iterator[Block]:
        """Generate the signal from its start, without end.

        Yields:
            Blocks of two seconds [mV].
        """
        heart, amplifier, electrodes, operator = np.random.default_rng(self.seed).spawn(4)
        rate, size = self.sampling_rate_hz, round(BLOCK * self.sampling_rate_hz)
        mean = 60 / self.heart_rate_bpm
        view = np.array(list(LEADS.values())[: self.leads]).T  # [3, leads]
        wander = np.append(1.0, electrodes.uniform(-1, 1, self.leads - 1))
        wander *= self.baseline_wander_mv
        phases = electrodes.uniform(0, 2 * math.pi, (4, self.leads))
        # z' + z = u, exactly for u linear between samples.
        decay = math.exp(-1 / rate)
        b, a = (1 - (1 - decay) * rate, (1 - decay) * rate - decay), (1.0, -decay)
        z = np.zeros((1, self.leads))
        rhythm, beats = self.rhythm(heart), deque[Beat]()
        artefacts: list[Artefact] = []
        events: list[Event] = []
        for first in count(step=size):
            t = np.arange(first, first + size)[:, None] / rate  # [samples, 1]
            begin, end = self.times(np.array([first, first + size])).tolist()
            events = [event for event in events if event.end > begin]

            # A beat reaches 1.125 mean intervals at most, see `rhythm` and `add_beat`.
            while not beats or beats[-1].peak - 1.2 * mean < t[-1, 0]:
                beats.append(beat := next(rhythm))
                if beat.ectopic:
                    at = self.start_time_s + beat.peak
                    events.append(Event(at - 0.08, at + 0.4, "ectopic", 1))
            while beats[0].peak + 1.2 * mean < t[0, 0]:
                beats.popleft()
            u = wander * np.sin(2 * math.pi * self.respiration_hz * t + phases[0])
            for beat in beats:
                add_beat(u, beat, view, first, rate)
            values, z = scipy.signal.lfilter(b, a, u, axis=0, zi=z)

            values += 0.4 * wander * (np.sin(0.19 * t + phases[1]) + np.sin(0.43 * t + phases[2]))
            values += self.mains_hum_mv * np.sin(2 * math.pi * self.mains_hz * t + phases[3])
            values += self.noise_mv * amplifier.standard_normal((size, self.leads))
            artefacts = [one for one in artefacts if one.first + len(one.values) > first]
            for artefact in self.draw_artefacts(electrodes, first, size):
                artefacts.append(artefact)
                span = self.times(artefact.first + np.array([0, len(artefact.values)])).tolist()
                kind, label = ("motion", 0) if artefact.lead is None else ("lead_off", 1)
                events.append(Event(span[0], span[1], kind, label, artefact.lead))
            # A fallen lead shows nothing else, so it goes last.
            for artefact in sorted(artefacts, key=lambda one: one.lead is not None):
                add_artefact(values, artefact, first)

            events += quiet_stretches(
                operator,
                events,
                begin=begin,
                end=end,
                expected=self.quiet_labels_per_min * BLOCK / 60,
                length=QUIET,
            )
            began = [event for event in events if begin <= event.start < end]
            yield Block(values, tuple(sorted(began, key=lambda event: event.start)))

    def rhythm(self, rng: np.random.Generator) -> Iterator[Beat]:
        """Generate the beats, without end.

        Args:
            rng: What the rhythm is drawn from.

        Yields:
            Beats, each later than the one before.
        """
        lines = 12  # cosines for each of the two peaks of the spectrum
        frequency = np.append(
            rng.normal(0.1, 0.01, lines), rng.normal(self.respiration_hz, 0.01, lines)
        )
        phase = rng.uniform(0, 2 * math.pi, 2 * lines)
        # Low to high frequency power 1:2, as McSharry et al.
        amplitude = np.repeat(np.sqrt([2 / 3 / lines, 4 / 3 / lines]), lines)
        amplitude *= self.heart_rate_variability_ms / 1000
        mean = 60 / self.heart_rate_bpm
        sinus = peak = 0.4  # [s] of the beat that the sinus node sends, and of the one that comes
        interval, ectopic = mean, False
        while True:
            breath = math.sin(2 * math.pi * self.respiration_hz * peak)
            gain = (1 + 0.04 * breath) * math.exp(0.02 * rng.standard_normal())
            yield Beat(peak, interval, gain, ectopic)
            swing = float(amplitude @ np.cos(2 * math.pi * frequency * sinus + phase))
            interval = min(max(mean + swing, 0.5 * mean), 1.5 * mean)
            draw, coupling = rng.random(), rng.uniform(0.55, 0.68)
            ectopic = not ectopic and draw < self.ectopic_share / (1 - self.ectopic_share)
            peak = sinus + (coupling * interval if ectopic else interval)
            sinus += interval

    def draw_artefacts(self, rng: np.random.Generator, first: int, size: int) -> Iterator[Artefact]:
        """Draw the artefacts that begin in a block.

        Args:
            rng: What they are drawn from.
            first: The block's first sample [samples].
            size: Of the block [samples].

        Yields:
            Artefacts, as long as they last.
        """
        rate = self.sampling_rate_hz
        for _ in range(rng.poisson(self.motion_noise_per_min * BLOCK / 60)):
            at, length = first + int(rng.integers(size)), round(rng.uniform(1, 4) * rate)
            band = scipy.signal.butter(2, (0.7, 12), "bandpass", fs=rate, output="sos")
            shape = scipy.signal.sosfilt(band, rng.standard_normal((length, self.leads)), axis=0)
            shape *= np.hanning(length)[:, None] / np.std(shape, axis=0)
            yield Artefact(at, shape * rng.uniform(0.3, 0.9, self.leads), None)
        for _ in range(rng.poisson(self.lead_off_per_min * BLOCK / 60)):
            at, length = first + int(rng.integers(size)), round((1 + rng.exponential(4)) * rate)
            lead, noisy = int(rng.integers(self.leads)), rng.random() < 0.5
            since = np.arange(length) / rate
            shape = rng.uniform(-0.5, 0.5) + rng.choice([-1, 1]) * np.exp(-since / 0.15)
            shape += 0.002 * rng.standard_normal(length)
            if noisy:  # an open wire is an antenna
                hum = 2 * math.pi * self.mains_hz * (at / rate + since)
                shape += 10 * self.mains_hum_mv * np.sin(hum) + 0.05 * rng.standard_normal(length)
            yield Artefact(at, shape[:, None], lead)


def add_beat(u: np.ndarray, beat: Beat, view: np.ndarray, first: int, rate: float) -> None:
    """Add, in place, what one beat drives the model with, to three quarters of its RR interval.

    Args:
        u: `[samples, leads]` right-hand side of the model [mV/s].
        beat: The beat; any part of it may lie outside.
        view: `[3, leads]` directions of the leads.
        first: Number of the first sample of `u` [samples].
        rate: Sampling rate [Hz].
    """
    waves = ECTOPIC if beat.ectopic else SINUS
    reach = 0.75 * beat.interval
    begin = max(math.ceil((beat.peak - reach) * rate) - first, 0)
    end = min(math.floor((beat.peak + reach) * rate) + 1 - first, len(u))
    if begin >= end:
        return
    # A faster heart takes more of its cycle for the same waves, as in the authors' ECGSYN.
    hurry = beat.interval**-0.5
    speed = 2 * math.pi / beat.interval
    width = waves.width * hurry
    theta = speed * (np.arange(first + begin, first + end) / rate - beat.peak)
    delta = (theta[:, None] - waves.phase * hurry**waves.stretch) / width  # [samples, waves]
    bumps = (speed / width) * delta * np.exp(-0.5 * delta**2)
    u[begin:end] -= bumps @ (beat.gain * waves.dipole @ view)


def add_artefact(values: np.ndarray, artefact: Artefact, first: int) -> None:
    """Put the part of an artefact that lies in a block there, in place.

    Args:
        values: `[samples, leads]` the block [mV].
        artefact: The artefact; any part of it may lie outside.
        first: Number of the first sample of `values` [samples].
    """
    begin = max(artefact.first - first, 0)
    end = min(artefact.first + len(artefact.values) - first, len(values))
    part = artefact.values[begin + first - artefact.first : end + first - artefact.first]
    if artefact.lead is None:
        values[begin:end] += part
    else:
        values[begin:end, artefact.lead] = part[:, 0]
