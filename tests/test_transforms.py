import importlib.metadata
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, iirnotch, lfilter, sosfilt, sosfilt_zi, tf2sos

from sensors.sample import Sample, Stream
from sensors.testing import check_transform
from sensors.transforms import (
    Bandpass,
    Chain,
    Features,
    Fill,
    Notch,
    Pca,
    Resample,
    Standardise,
    Transform,
    chain,
)

STREAM = Stream("s", ("a", "b", "c"), ("mV", "mV", "V"), 100.0)
RNG = np.random.default_rng(0)
WALK = np.cumsum(RNG.normal(size=(400, 3)), axis=0) + [0.0, 50.0, -3.0]
ALL = [
    Bandpass(0.5, 40.0),
    Bandpass(low_hz=1.0),
    Bandpass(high_hz=10.0, order=3),
    Notch(25.0),
    Resample(60.0),
    Resample(250.0),
    Fill(),
    Standardise(memory_samples=50),
    Pca(2),
    Features(differences=2, haar_levels=3, bands_hz=((1.0, 4.0), (8.0, 12.0))),
    chain([Fill(), Resample(50.0), Bandpass(1.0, 20.0), Standardise(), Pca(1), Features()]),
    Chain(),
]


def feed(transform, values, times=None, stream=STREAM, sequences=None):
    times = np.arange(len(values)) / 100 if times is None else times
    sequences = range(len(values)) if sequences is None else sequences
    state, out = transform.init(stream), []
    for sequence, time, x in zip(sequences, times, values, strict=True):
        state, samples = transform.step(state, Sample("s", sequence, float(time), x))
        out += samples
    return out


def values_of(samples):
    return np.array([sample.values for sample in samples])


@pytest.mark.parametrize("transform", ALL, ids=lambda one: type(one).__name__)
def test_a_transform_keeps_its_contract(transform):
    assert isinstance(transform, Transform)
    check_transform(lambda: transform, STREAM, samples=60)


@pytest.mark.parametrize("transform", ALL, ids=lambda one: type(one).__name__)
def test_one_missing_or_infinite_value_leaves_the_other_channels_alone_and_is_forgotten(transform):
    if isinstance(transform, (Pca, Chain)) and transform != Chain():
        pytest.skip("mixes channels")
    broken = WALK.copy()
    broken[100, 1], broken[130, 1] = np.nan, np.inf
    whole, got = values_of(feed(transform, WALK)), values_of(feed(transform, broken))
    mine = [n for n, name in enumerate(transform.output(STREAM).channels) if name[0] == "b"]
    others = [n for n in range(got.shape[1]) if n not in mine]
    np.testing.assert_array_equal(got[:, others], whole[:, others])
    assert np.isfinite(got[-100:]).all()


@pytest.mark.parametrize(
    ("transform", "sos"),
    [
        (Bandpass(0.5, 40.0), butter(2, (0.5, 40), "bandpass", fs=100, output="sos")),
        (Bandpass(low_hz=1.0, order=3), butter(3, 1, "highpass", fs=100, output="sos")),
        (Bandpass(high_hz=10.0), butter(2, 10, "lowpass", fs=100, output="sos")),
        (Notch(25.0, 10.0), tf2sos(*iirnotch(25, 10, fs=100))),
    ],
)
def test_filtering_by_the_sample_equals_filtering_the_whole(transform, sos):
    start = sosfilt_zi(sos)[:, :, None] * WALK[0]
    wanted, _ = sosfilt(sos, WALK, axis=0, zi=start)
    np.testing.assert_allclose(values_of(feed(transform, WALK)), wanted, rtol=1e-9, atol=1e-9)


def test_a_filter_holds_the_last_value_where_one_is_missing_and_puts_out_nan():
    missing = np.zeros(len(WALK), bool)
    missing[[0, 1, 50, 51, 52]] = True
    broken = np.where(missing[:, None], np.nan, WALK)
    held = WALK.copy()
    held[50:53] = WALK[49]
    got = values_of(feed(Bandpass(1.0, 20.0), broken))
    wanted = values_of(feed(Bandpass(1.0, 20.0), held[2:]))
    assert np.isnan(got[missing]).all()
    np.testing.assert_allclose(got[2:][~missing[2:]], wanted[~missing[2:]])


def test_a_notch_takes_the_mains_out_and_leaves_the_rest():
    stream, t = STREAM._replace(sampling_rate=360.0), np.arange(360 * 8) / 360
    slow, hum = np.sin(2 * np.pi * 3 * t), np.sin(2 * np.pi * 50 * t)
    got = values_of(feed(Notch(50.0), np.stack([slow, hum, slow + hum], 1), t, stream))[360 * 4 :]
    assert abs(got[:, 1]).max() < 0.01
    np.testing.assert_allclose(got[:, 0], slow[360 * 4 :], atol=0.02)


@pytest.mark.parametrize("rate", [33.0, 100.0, 250.0])
@pytest.mark.parametrize("origin", [0.0, 1_704_067_200.0])
def test_resampling_by_the_sample_equals_interpolating_the_whole(rate, origin):
    times = origin + np.sort(np.random.default_rng(1).uniform(0, 4, len(WALK)))
    out = feed(Resample(rate), WALK, times)
    got = np.array([sample.time for sample in out])
    np.testing.assert_allclose(got, times[0] + np.arange(len(got)) / rate, rtol=0, atol=1e-6)
    assert times[-1] - got[-1] < 1 / rate
    for channel in range(3):
        wanted = np.interp(got, times, WALK[:, channel])
        np.testing.assert_allclose(values_of(out)[:, channel], wanted, rtol=1e-7, atol=1e-7)
    assert [sample.sequence for sample in out] == list(range(len(out)))


@settings(max_examples=40)
@given(
    st.lists(st.floats(-0.5, 3.0), min_size=1, max_size=30),
    st.sampled_from([3.0, 10.0, 50.0]),
)
def test_resampling_moves_forward_and_never_fills_a_long_gap(steps, rate):
    times = np.cumsum(steps)
    out = feed(Resample(rate, max_gap_s=1.0), np.zeros((len(times), 3)), times)
    got = np.array([sample.time for sample in out])
    assert np.all(np.diff(got) > 0)
    kept = np.maximum.accumulate(times)
    for one in got:
        after = kept[np.searchsorted(kept, one - 1e-9)]
        before = kept[np.searchsorted(kept, one + 1e-9, side="right") - 1]
        assert after - before <= 1.0 + 1e-6
    assert len(got) <= 1 + len(times) * (rate + 1)


def test_resampling_starts_the_grid_anew_after_a_gap_and_counts_on():
    times = np.array([0.0, 0.1, 0.2, 5.03, 5.13])
    out = feed(Resample(10.0, max_gap_s=0.5), np.arange(15.0).reshape(5, 3), times)
    assert [sample.time for sample in out] == pytest.approx(times)
    assert [sample.sequence for sample in out] == [0, 1, 2, 3, 4]


def test_resampling_says_which_values_rest_on_filled_ones():
    state, marked = Resample(20.0).init(STREAM), []
    for n, filled in enumerate([None, np.array([True, False, False]), None, None]):
        state, out = Resample(20.0).step(state, Sample("s", n, n / 10, np.zeros(3), filled))
        marked += [None if one.filled is None else one.filled.tolist() for one in out]
    yes = [True, False, False]
    assert marked == [None, yes, yes, yes, None, None, None]


def test_filling_holds_for_so_long_and_no_longer():
    broken = WALK[:20].copy()
    broken[5:12, 0] = np.nan
    out = feed(Fill(max_samples=3), broken)
    got, wanted = values_of(out), broken.copy()
    wanted[5:8, 0] = broken[4, 0]
    np.testing.assert_array_equal(got, wanted)
    assert [n for n, one in enumerate(out) if one.filled is not None and one.filled[0]] == [5, 6, 7]
    assert not any(one.filled is not None and one.filled[1:].any() for one in out)


@pytest.mark.parametrize("counted", [True, False])
def test_filling_puts_missing_moments_in_and_counts_them(counted):
    there = np.array([0, 1, 2, 5, 6, 30, 31])
    sequences = there if counted else np.arange(len(there))
    out = feed(Fill(max_samples=4), WALK[there], there / 100, sequences=sequences.tolist())
    moments = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 30, 31]
    assert [one.time for one in out] == pytest.approx(np.array(moments) / 100)
    assert [one.sequence for one in out] == (moments if counted else list(range(13)))
    held = [0, 1, 2, 2, 2, 5, 6, 6, 6, 6, 6, 30, 31]
    np.testing.assert_array_equal(values_of(out), WALK[held])
    marked = [one.filled is not None and bool(one.filled.all()) for one in out]
    assert marked == [h != m for h, m in zip(held, moments, strict=True)]


def test_filling_does_not_take_jitter_for_a_gap():
    times = np.arange(400) / 100 + np.random.default_rng(2).uniform(-0.002, 0.002, 400)
    out = feed(Fill(), WALK, times)
    assert [one.time for one in out] == times.tolist()
    assert all(one.filled is None for one in out)


def test_filling_without_a_sampling_rate_goes_by_time():
    stream = STREAM._replace(sampling_rate=None)
    with pytest.raises(ValueError, match="max_gap_s"):
        Fill().init(stream)
    broken = WALK[:4].copy()
    broken[1:3] = np.nan
    got = values_of(feed(Fill(max_gap_s=1.0), broken, [0.0, 0.9, 1.1, 7.0], stream))
    np.testing.assert_array_equal(got, [WALK[0], WALK[0], [np.nan] * 3, WALK[3]])


@pytest.mark.slow
def test_standardising_finds_location_and_scale_in_spite_of_outliers():
    rng = np.random.default_rng(3)
    x = rng.normal([0.0, 1e6, -5.0], [1e-3, 3.0, 1.0], (4000, 3))
    x[rng.random(x.shape) < 0.05] += 1e4
    state, transform = Standardise(memory_samples=200).init(STREAM), Standardise(200)
    for n, values in enumerate(x):
        state, _ = transform.step(state, Sample("s", n, n / 100, values))
    np.testing.assert_allclose(state.scale, [1e-3, 3.0, 1.0], rtol=0.35)
    error = (state.location - [0.0, 1e6, -5.0]) / state.scale
    np.testing.assert_allclose(error, 0, atol=0.4)


@pytest.mark.slow
def test_standard_scores_of_normal_values_are_standard_normal():
    x = np.random.default_rng(4).normal(7.0, 2.0, (6000, 3))
    got = values_of(feed(Standardise(memory_samples=300), x))[600:]
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(got.std(axis=0), 1, atol=0.08)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_standard_scores_do_not_depend_on_the_unit(factor, offset):
    x = WALK[:40]
    one, other = (values_of(feed(Standardise(20), y)) for y in (x, factor * x + offset))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_constant_channel_scores_zero_and_a_dead_one_does_not_blow_up():
    x = np.random.default_rng(5).normal(size=(3000, 3))
    x[:, 0] = 4.0
    x[500:2000, 1] = 0.0
    got = values_of(feed(Standardise(memory_samples=100), x))
    assert not got[:, 0].any()
    assert abs(got[2000:, 1]).max() < 100
    assert np.std(got[2700:, 1]) == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_standardising_learns_from_a_level_shift():
    x = np.random.default_rng(6).normal(size=(3000, 3))
    x[1000:] += 20
    got = values_of(feed(Standardise(memory_samples=100), x))
    assert got[1000].min() > 10
    assert abs(got[-500:].mean()) < 0.3


def test_standardising_does_not_learn_from_what_was_filled_in():
    transform = Standardise(50)
    state = transform.init(STREAM)
    for n, x in enumerate(WALK):
        state, _ = transform.step(state, Sample("s", n, n / 100, x))
    after, _ = transform.step(state, Sample("s", 400, 4.0, WALK[0], np.array([True, False, True])))
    np.testing.assert_array_equal(after.location == state.location, [True, False, True])
    np.testing.assert_array_equal(after.scale == state.scale, [True, False, True])


@pytest.mark.slow
def test_streaming_components_converge_to_those_of_the_whole():
    rng = np.random.default_rng(7)
    stream = Stream("s", tuple("abcdef"), ("",) * 6)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    x = rng.normal(size=(4000, 6)) * [5.0, 3.0, 2.0, 0.5, 0.3, 0.1] @ turn + 10
    state, out = Pca(3).init(stream), []
    for n, values in enumerate(x):
        state, samples = Pca(3).step(state, Sample("s", n, float(n), values))
        out += samples
    singular, wanted = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[1:]
    lengths = np.linalg.norm(state.vectors, axis=1)
    got = state.vectors / lengths[:, None]
    cosines = np.linalg.svd(np.linalg.qr(got.T)[0].T @ wanted[:3].T)[1]
    assert cosines.min() > 0.9999  # of the angles between the two subspaces
    np.testing.assert_allclose(abs(np.sum(got * wanted[:3], axis=1)), 1, atol=1e-3)
    np.testing.assert_allclose(lengths, singular[:3] ** 2 / len(x), rtol=0.1)
    whole = (x - x.mean(axis=0)) @ wanted[:3].T
    for n in range(3):
        alike = np.corrcoef(values_of(out)[2000:, n], whole[2000:, n])[0, 1]
        assert abs(alike) > 0.99


def test_components_of_a_sample_with_missing_values_rest_on_the_others():
    transform = Pca(2)
    state = transform.init(STREAM)
    for n, x in enumerate(WALK):
        state, _ = transform.step(state, Sample("s", n, n / 100, x))
    gap = np.array([WALK[5, 0], np.nan, WALK[5, 2]])
    as_mean = np.where(np.isnan(gap), state.mean, gap)
    after, (one,) = transform.step(state, Sample("s", 400, 4.0, gap))
    _, (other,) = transform.step(state, Sample("s", 400, 4.0, as_mean))
    np.testing.assert_array_equal(one.values, other.values)
    assert after is state
    _, (none,) = transform.step(state, Sample("s", 400, 4.0, np.full(3, np.nan)))
    assert np.isnan(none.values).all()


def test_features_equal_those_of_the_whole():
    transform = Features(2, 4, ((1.0, 4.0), (8.0, 12.0)), power_memory_s=0.5)
    got = values_of(feed(transform, WALK))
    first = np.diff(WALK, axis=0, prepend=WALK[:1])
    wanted = [WALK, first, np.diff(WALK, 2, axis=0, prepend=WALK[[0, 0]])]
    smooth = WALK
    for level in range(4):  # a trous, whole signal at once
        lag = 2**level
        shifted = np.concatenate([np.repeat(smooth[:1], lag, axis=0), smooth[:-lag]])
        coarser = (smooth + shifted) / 2
        wanted.append(smooth - coarser)
        smooth = coarser
    for band in ((1.0, 4.0), (8.0, 12.0)):
        sos = butter(2, band, "bandpass", fs=100, output="sos")
        y, _ = sosfilt(sos, WALK, axis=0, zi=sosfilt_zi(sos)[:, :, None] * WALK[0])
        gain = 1 - math.exp(-1 / 50)
        wanted.append(lfilter([gain], [1, gain - 1], y**2, axis=0))
    np.testing.assert_allclose(got, np.concatenate(wanted, axis=1), rtol=1e-8, atol=1e-8)
    output = transform.output(STREAM)
    assert len(output.channels) == len(output.units) == got.shape[1]
    assert output.channels[3] == "a:diff1"
    assert output.channels[-1] == "c:8-12Hz"
    assert output.units[-1] == "(V)^2"


def test_features_of_a_missing_value_are_missing_and_later_ones_look_back_at_the_held_one():
    broken, held = WALK.copy(), WALK.copy()
    broken[50:53], held[50:53] = np.nan, WALK[49]
    transform = Features(2, 3)
    got, wanted = values_of(feed(transform, broken)), values_of(feed(transform, held))
    assert np.isnan(got[50:53]).all()
    np.testing.assert_allclose(np.delete(got, [50, 51, 52], 0), np.delete(wanted, [50, 51, 52], 0))


def test_features_take_lists_as_a_file_has_them():
    assert Features(bands_hz=[[1, 4]]) == Features(bands_hz=((1.0, 4.0),))


def test_a_chain_equals_its_links_one_after_the_other():
    links = [Resample(50.0), Bandpass(1.0, 20.0), Features(2)]
    whole = feed(chain(links), WALK)
    stream, samples = STREAM, feed(Chain(), WALK)
    for link in links:
        state, out = link.init(stream), []
        for sample in samples:
            state, passed = link.step(state, sample)
            out += passed
        stream, samples = link.output(stream), out
    assert chain(links).output(STREAM) == stream
    np.testing.assert_array_equal(values_of(whole), values_of(samples))
    assert [one[:3] for one in whole] == [one[:3] for one in samples]


@pytest.mark.parametrize(
    ("transform", "stream", "remedy"),
    [
        (Bandpass(0.5, 40.0), STREAM._replace(sampling_rate=None), "sampling_rate_hz"),
        (Bandpass(0.5, 50.0), STREAM, "Lower the frequency"),
        (Notch(60.0), STREAM, "Lower the frequency"),
        (Pca(4), STREAM, "Lower components"),
        (Resample(10.0, max_gap_s=0.001), STREAM, "Raise max_gap_s"),
        (Features(bands_hz=((1.0, 4.0),)), STREAM._replace(sampling_rate=None), "resample"),
        (chain([Resample(50.0), Bandpass(1.0, 40.0)]), STREAM, "50 Hz"),
    ],
)
def test_options_that_do_not_fit_the_stream_say_what_to_do(transform, stream, remedy):
    with pytest.raises(ValueError, match=remedy):
        transform.output(stream)
    with pytest.raises(ValueError, match=remedy):
        transform.init(stream)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bandpass(),
        lambda: Bandpass(4.0, 1.0),
        lambda: Bandpass(0.0, 1.0),
        lambda: Bandpass(1.0, order=0),
        lambda: Notch(0.0),
        lambda: Resample(0.0),
        lambda: Resample(1.0, max_gap_s=0.0),
        lambda: Fill(max_samples=0),
        lambda: Fill(max_gap_s=-1.0),
        lambda: Standardise(3),
        lambda: Pca(0),
        lambda: Pca(1, memory_samples=2),
        lambda: Features(-1),
        lambda: Features(bands_hz=((4.0, 1.0),)),
        lambda: Features(power_memory_s=0.0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must|need"):
        make()


def test_the_built_in_transforms_are_importable_where_plug_ins_look_for_them():
    for point in importlib.metadata.entry_points(group="sensors.transforms"):
        assert isinstance(point.load(), type)
