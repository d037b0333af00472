import asyncio
from itertools import islice, pairwise

import numpy as np
import pytest
from scipy.signal import find_peaks, periodogram

from sensors.ecg import LEADS, SINUS
from sensors.sample import Feedback, Sample, Source
from sensors.simulated import SimulatedEcg, SimulatedTraffic
from sensors.testing import check_source
from sensors.traffic import overlap, profile
from sensors.truth import Event, quiet_stretches

CLEAN = {
    "ectopic_share": 0,
    "baseline_wander_mv": 0,
    "mains_hum_mv": 0,
    "noise_mv": 0,
    "motion_noise_per_min": 0,
    "lead_off_per_min": 0,
}
CALM = {"incidents_per_day": 0, "faults_per_day": 0, "drift_per_day": 0}
BUSY_ECG = SimulatedEcg(
    speed=0,
    duration_s=40,
    lead_off_per_min=4,
    motion_noise_per_min=4,
    quiet_labels_per_min=30,
    label_delay_s=1,
)
BUSY_TRAFFIC = SimulatedTraffic(
    speed=0, duration_s=3 * 86_400, faults_per_day=4, incidents_per_day=4
)


def collect(source):
    async def run():
        return [item async for item in source]

    return asyncio.run(run())


@pytest.mark.parametrize("source", [BUSY_ECG, BUSY_TRAFFIC], ids=["ecg", "traffic"])
def test_iterating_yields_what_record_returns(source):
    recording = source.record()
    samples = [item for item in collect(source) if isinstance(item, Sample)]
    assert isinstance(source, Source)
    assert [sample.sequence for sample in samples] == list(range(len(recording.time)))
    assert {sample.stream for sample in samples} == {source.streams[0].name}
    np.testing.assert_array_equal([sample.time for sample in samples], recording.time)
    np.testing.assert_array_equal([sample.values for sample in samples], recording.values)
    assert recording.values.shape[1] == len(source.streams[0].channels)
    np.testing.assert_allclose(np.diff(recording.time), 1 / source.streams[0].sampling_rate)


@pytest.mark.parametrize("source", [BUSY_ECG, BUSY_TRAFFIC], ids=["ecg", "traffic"])
def test_the_beginning_does_not_depend_on_how_much_is_asked_for(source):
    whole = source.record()
    for samples in (1, 500, 723):
        part = source.record(samples)
        np.testing.assert_array_equal(part.time, whole.time[:samples])
        np.testing.assert_array_equal(part.values, whole.values[:samples])
        np.testing.assert_array_equal(part.label, whole.label[:samples])
        assert part.events == tuple(e for e in whole.events if e.start <= part.time[-1])


@pytest.mark.parametrize("make", [SimulatedEcg, SimulatedTraffic])
def test_another_seed_is_another_signal(make):
    first, second = make(seed=1).record(100), make(seed=2).record(100)
    assert np.any(first.values != second.values)


@pytest.mark.parametrize("source", [BUSY_ECG, BUSY_TRAFFIC], ids=["ecg", "traffic"])
def test_feedback_is_the_truth_and_comes_the_delay_after_the_end(source):
    recording, items = source.record(), collect(source)
    wanted = {
        (event.start, event.label, event.end - event.start)
        for event in recording.events
        if event.label is not None and event.end + source.label_delay_s <= recording.time[-1]
    }
    got = [item for item in items if isinstance(item, Feedback)]
    assert {(one.time, one.label, one.duration) for one in got} == wanted
    assert len(got) == len(wanted)
    assert {one.label for one in got} == {0, 1}
    newest = -np.inf
    for item, following in pairwise(items):
        newest = item.time if isinstance(item, Sample) else newest
        if isinstance(item, Feedback):
            known = item.time + item.duration + source.label_delay_s
            assert newest < known + 1e-6
            if isinstance(following, Sample):
                assert known <= following.time + 1e-6


@pytest.mark.parametrize("source", [BUSY_ECG, BUSY_TRAFFIC], ids=["ecg", "traffic"])
def test_labels_mark_just_the_events_that_an_operator_confirms(source):
    recording = source.record()
    inside = np.zeros(len(recording.time), bool)
    for event in recording.events:
        if event.label == 1:
            inside |= (recording.time >= event.start) & (recording.time < event.end)
    np.testing.assert_array_equal(recording.label, inside)
    assert inside.any()
    assert not inside.all()


@pytest.mark.parametrize("source", [BUSY_ECG, BUSY_TRAFFIC], ids=["ecg", "traffic"])
def test_nothing_happens_in_a_quiet_stretch(source):
    events = source.record().events
    quiet = [event for event in events if event.kind == "quiet"]
    assert quiet
    for stretch in quiet:
        for event in events:
            if event.kind != "quiet":
                assert event.end <= stretch.start or event.start >= stretch.end


def test_drawing_quiet_stretches_takes_the_same_from_the_generator_whatever_happens():
    rngs = [np.random.default_rng(3) for _ in range(2)]
    events = [Event(0.0, 100.0, "incident", 1)]
    options = {"begin": 0.0, "end": 100.0, "expected": 10.0, "length": 5.0}
    free = list(quiet_stretches(rngs[0], [], **options))
    assert list(quiet_stretches(rngs[1], events, **options)) == []
    assert free
    assert rngs[0].random() == rngs[1].random()


@pytest.mark.parametrize("speed", [1.0, 8.0])
def test_each_sample_comes_when_it_is_due_and_delays_do_not_add_up(virtual_time, speed):
    source = SimulatedEcg(sampling_rate_hz=100, duration_s=3, speed=speed)
    late = []

    async def run():
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async for item in source:
            if isinstance(item, Sample):
                late.append(loop.time() - begin - item.sequence / 100 / speed)
            if len(late) == 50:  # a slow consumer, once
                await asyncio.sleep(0.5 / speed)

    virtual_time.run(run())
    assert len(late) == 300
    assert min(late) > -1e-6
    assert max(late[:50] + late[110:]) < 1e-6
    assert 0.4 < speed * max(late[50:60]) < 0.5


def test_a_source_at_full_speed_lets_others_run():
    turns = 0

    async def run():
        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        async for _ in SimulatedEcg(duration_s=2, speed=0):
            pass
        task.cancel()

    asyncio.run(run())
    assert turns >= 10


def peaks(recording):
    found, _ = find_peaks(recording.values[:, 0], height=0.6, distance=100)
    return recording.time[found]


def test_a_clean_ecg_has_the_heart_rate_and_amplitude_asked_for():
    source = SimulatedEcg(heart_rate_bpm=75, duration_s=100, **CLEAN)
    recording = source.record()
    intervals = np.diff(peaks(recording))
    assert 60 / intervals.mean() == pytest.approx(75, rel=0.02)
    assert intervals.std() == pytest.approx(0.04, rel=0.35)
    assert 0.9 < np.quantile(recording.values[:, 0], 0.999) < 1.4
    assert recording.values[:, 0].min() > -0.6


def test_rr_intervals_swing_with_breathing_and_mayer_waves():
    source = SimulatedEcg(respiration_hz=0.3, **CLEAN)
    beats = list(islice(source.rhythm(np.random.default_rng(0)), 900))
    at = np.array([beat.peak for beat in beats])
    even = np.interp(np.arange(0.0, at[-1], 0.5), at[1:], np.diff(at))
    frequency, power = periodogram(even - even.mean(), fs=2.0)
    low = power[(frequency > 0.06) & (frequency < 0.14)].sum()
    high = power[(frequency > 0.25) & (frequency < 0.35)].sum()
    assert low + high > 0.8 * power.sum()
    assert low / high == pytest.approx(0.5, rel=0.5)


def test_the_wave_equation_is_solved_as_by_small_euler_steps():
    options = {"leads": 1, "heart_rate_bpm": 60, "heart_rate_variability_ms": 0}
    source = SimulatedEcg(**options, **CLEAN)
    beats = list(islice(source.rhythm(np.random.default_rng(0).spawn(4)[0]), 3))
    alpha, b, w = SINUS.dipole @ np.array(LEADS["II"]), SINUS.width, 2 * np.pi
    fine = np.arange(36_000) / 36_000
    drive = np.zeros(len(fine))
    for beat in beats:
        delta = w * (fine - beat.peak)[:, None] - SINUS.phase
        waves = np.exp(-0.5 * (delta / b) ** 2) * delta @ (alpha * w / b**2)
        drive -= beat.gain * waves * (abs(fine - beat.peak) <= 0.75)
    z, curve = 0.0, []
    for d in drive.tolist():
        curve.append(z)
        z += (d - z) / 36_000
    np.testing.assert_allclose(source.record(360).values[:, 0], curve[::100], atol=0.01)


def test_an_ectopic_beat_is_early_wide_and_followed_by_a_compensatory_pause():
    source = SimulatedEcg(**{**CLEAN, "ectopic_share": 0.1, "heart_rate_variability_ms": 5})
    beats = list(islice(source.rhythm(np.random.default_rng(1)), 2000))
    share = np.mean([beat.ectopic for beat in beats])
    assert share == pytest.approx(0.1, abs=0.025)
    mean = 60 / 70
    for before, beat, after in zip(beats, beats[1:], beats[2:], strict=False):
        if beat.ectopic:
            assert not before.ectopic
            assert not after.ectopic
            assert beat.peak - before.peak < 0.7 * mean
            assert after.peak - before.peak == pytest.approx(2 * mean, rel=0.05)

    recording = source.record(360 * 60)
    lead = recording.values[:, 0]

    def width(at):
        near = lead[abs(recording.time - at) < 0.15]
        return np.sum(near > 0.5 * near.max()) / 360

    begun = [event.start + 0.08 for event in recording.events if event.kind == "ectopic"]
    normal = [at for at in peaks(recording) if min(abs(at - np.array(begun))) > 0.4]
    assert min(width(at) for at in begun) > 1.8 * max(width(at) for at in normal)


def test_a_lead_that_is_off_shows_no_heart():
    recording = SimulatedEcg(seed=3, lead_off_per_min=2, duration_s=120).record()
    off = [event for event in recording.events if event.kind == "lead_off"]
    assert off
    for event in off:
        settled = (recording.time > event.start + 1) & (recording.time < event.end)
        values = recording.values[settled, event.channel]
        if len(values):
            assert np.ptp(values) < 1.0
            assert np.std(values) < 0.2


def test_motion_shakes_and_is_not_confirmed():
    options = {**CLEAN, "motion_noise_per_min": 3}
    still, shaken = (SimulatedEcg(**one).record(360 * 60) for one in (CLEAN, options))
    difference = shaken.values - still.values
    motion = [event for event in shaken.events if event.kind == "motion"]
    inside = np.zeros(len(shaken.time), bool)
    for event in motion:
        inside |= (shaken.time >= event.start) & (shaken.time < event.end)
    assert {event.label for event in motion} == {0}
    assert not difference[~inside].any()
    assert difference[inside].std() > 0.1
    assert not shaken.label.any()


def test_hum_is_at_the_frequency_of_the_mains():
    options = {**CLEAN, "mains_hum_mv": 0.5, "mains_hz": 60}
    still, humming = (SimulatedEcg(**one).record(3600) for one in (CLEAN, options))
    frequency, power = periodogram((humming.values - still.values)[:, 0], fs=360)
    assert frequency[power.argmax()] == pytest.approx(60)
    assert power.sum() * frequency[1] == pytest.approx(0.5**2 / 2, rel=1e-3)


def test_counts_are_poisson_around_the_profile():
    source = SimulatedTraffic(**CALM, counters=1, rush_hour_flow_per_h=6000)
    values = source.record(288 * 7 * 8).values[:, 0].reshape(8, 7, 288)
    week = values.mean(axis=0)
    # 05:55 to 02:00 on one day: Tuesday is like Monday, Sunday is not.
    assert np.corrcoef(week[0], week[1])[0, 1] > 0.98
    assert week[0].sum() > 1.15 * week[6].sum()
    assert week[0][7 * 12 : 9 * 12].mean() > 4 * week[0][: 4 * 12].mean()
    assert week[6][7 * 12 : 9 * 12].mean() < 0.5 * week[6][14 * 12 : 16 * 12].mean()
    # At night the Poisson part rules: the variance is about the mean.
    night = values[:, :5, 12:36].reshape(-1, 24)
    assert 0.9 < np.mean(night.var(axis=0) / night.mean(axis=0)) < 1.5
    assert np.all(values == np.round(values))
    assert np.all(values >= 0)


def test_a_working_day_has_two_rush_hours_and_a_weekend_none():
    hours = np.arange(0, 24, 0.25)
    monday = profile(hours * 3600 + 4 * 86_400, (0.5,))[:, 0]  # 1970-01-05
    sunday = profile(hours * 3600 + 3 * 86_400, (0.5,))[:, 0]
    assert hours[find_peaks(monday, prominence=0.05)[0]] == pytest.approx([7.75, 16.75], abs=0.5)
    assert hours[find_peaks(sunday, prominence=0.05)[0]] == pytest.approx([14.5], abs=0.5)


def test_an_incident_takes_flow_from_one_counter_only():
    calm = {**CALM, "rush_hour_flow_per_h": 6000}
    before = SimulatedTraffic(**calm).record(288 * 14)
    after = SimulatedTraffic(**{**calm, "incidents_per_day": 2}).record(288 * 14)
    incidents = [event for event in after.events if event.kind == "incident"]
    assert 14 < len(incidents) < 44
    taken = []
    for event in incidents:
        at = (after.time >= event.start) & (after.time < event.end)
        flow = [one.values[at, event.channel].sum() for one in (after, before)]
        taken.append(1 - flow[0] / flow[1])
    assert min(taken) > 0.2
    assert np.median(taken) > 0.4


@pytest.mark.parametrize("kind", ["stuck_zero", "stuck_value", "missing"])
def test_a_faulty_counter_says_the_same_all_the_time(kind):
    recording = SimulatedTraffic(**{**CALM, "faults_per_day": 1}).record(288 * 14)
    faults = [event for event in recording.events if event.kind == kind]
    assert faults
    others = [event for event in recording.events if event.kind in {"stuck_zero", "stuck_value"}]
    for event in faults:
        at = (recording.time >= event.start) & (recording.time < event.end)
        values = recording.values[at, event.channel]
        overlapping = [
            one
            for one in recording.events
            if one.channel == event.channel and one.start < event.end and event.start < one.end
        ]
        if len(overlapping) == 1:
            assert len(set(values.astype(str))) == 1
            assert (kind == "missing") == bool(np.isnan(values).all())
            assert (event.label is None) == (kind == "missing")
    assert all(event.label == 1 for event in others)


def test_drift_grows_with_the_root_of_time():
    calm = {**CALM, "counters": 40, "rush_hour_flow_per_h": 60_000}
    before = SimulatedTraffic(**calm).record(288 * 16).values.reshape(16, 288, 40).sum(axis=1)
    after = SimulatedTraffic(**{**calm, "drift_per_day": 0.05}).record(288 * 16)
    change = np.log(after.values.reshape(16, 288, 40).sum(axis=1) / before)
    assert change[15].std() == pytest.approx(0.05 * np.sqrt(15.6), rel=0.35)
    assert change[1].std() == pytest.approx(0.05 * np.sqrt(1.6), rel=0.4)


@pytest.mark.parametrize("first", [0, 4, 9, 10, 30])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_overlap_is_what_indexing_by_number_gives(first, length):
    stretch, block = np.arange(first, first + length), np.arange(10, 30)
    here, there = overlap(first, length, 10, 20)
    np.testing.assert_array_equal(block[here], np.intersect1d(stretch, block))
    np.testing.assert_array_equal(stretch[there], np.intersect1d(stretch, block))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (SimulatedEcg, {"sampling_rate_hz": 10}),
        (SimulatedEcg, {"leads": 0}),
        (SimulatedEcg, {"leads": 7}),
        (SimulatedEcg, {"heart_rate_bpm": 0}),
        (SimulatedEcg, {"ectopic_share": 0.5}),
        (SimulatedEcg, {"speed": -1}),
        (SimulatedEcg, {"duration_s": 0}),
        (SimulatedEcg, {"label_delay_s": -1}),
        (SimulatedTraffic, {"counters": 0}),
        (SimulatedTraffic, {"interval_s": 0}),
    ],
)
def test_an_option_out_of_range_is_named(make, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        make(**option)


def test_recording_an_endless_source_needs_a_number():
    with pytest.raises(ValueError, match="duration_s"):
        SimulatedEcg().record()
    with pytest.raises(ValueError, match="at least one"):
        SimulatedEcg().record(0)


@pytest.mark.parametrize("make", [SimulatedEcg, SimulatedTraffic])
def test_a_simulated_source_keeps_the_contract_of_sources(make):
    duration = 2.0 if make is SimulatedEcg else 40_000.0
    check_source(lambda: make(duration_s=duration, speed=0), repeatable=True)
    check_source(lambda: make(duration_s=duration, speed=duration), repeatable=True)
