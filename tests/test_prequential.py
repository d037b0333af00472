import numpy as np
import pytest

from adaptive.controller import MANDATORY, Controller
from adaptive.event import LOOK
from adaptive.prequential import Label, Results, replay_arrays
from adaptive.settings import Alarms, Model

SETTINGS = Model(
    horizon_samples=2, memory_samples=512, window_samples=16, dim=8, heads=2, learn_every_samples=40
)
ROWS, DUE = 260, SETTINGS.learn_every_samples


@pytest.fixture(scope="module")
def programs():
    controller = Controller(1, 1, SETTINGS)
    for _ in controller.engine.warm_up():
        pass
    return controller


@pytest.fixture
def fresh(programs):
    def make():
        controller = Controller(1, 1, SETTINGS, Alarms(alarms_per_day=1000.0))
        controller.engine.take_programs(programs.engine)
        return controller

    return make


def some(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    values = np.sin(np.arange(rows) / 6.0) + rng.normal(0, 0.1, rows)
    values[150:155] = np.nan
    return 100.0 + 60.0 * np.arange(rows), 40 + values[:, None]


def compared(a, b, rows=None):
    """Assert that results are the same, bit by bit, but for the time that they took."""
    for name in Results._fields:
        if name != "latency":
            got, wanted = getattr(a, name)[:rows], getattr(b, name)[:rows]
            np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_there_is_one_row_out_for_each_row_in(fresh):
    time, values = some()
    values[200] = np.inf
    results = replay_arrays(fresh(), time, values, level=1)
    for name, shape in {
        "time": (ROWS,),
        "values": (ROWS, 1),
        "forecast": (ROWS, 2, 1),
        "score": (ROWS,),
        "p_value": (ROWS,),
        "alarm": (ROWS,),
        "event": (ROWS,),
        "level": (ROWS,),
        "latency": (ROWS,),
        "strength": (ROWS,),
        "spread": (ROWS, 1),
    }.items():
        assert getattr(results, name).shape == shape, name
    assert results.forecast.dtype == np.float32
    assert results.alarm.dtype == bool
    np.testing.assert_array_equal(results.time, time)
    np.testing.assert_array_equal(results.values, np.where(np.isfinite(values), values, np.nan))
    assert np.isfinite(results.forecast).all()
    assert ((results.score >= 0) & (results.score <= 1)).all()
    assert ((results.strength >= 0) & (results.strength < 1)).all()
    assert ((results.p_value > 0) & (results.p_value <= 1)).all()
    assert (results.level == 1).all()
    assert (results.latency > 0).all()
    assert np.isnan(results.event).all()  # no labels


@pytest.mark.parametrize("level", [0, 1])
def test_results_do_not_depend_on_what_comes_later(fresh, level):
    time, values = some()
    other = values.copy()
    other[201:] = 1e9  # in the middle of a call
    whole = replay_arrays(fresh(), time, values, level=level)
    compared(replay_arrays(fresh(), time[:201], values[:201], level=level), whole, 201)
    compared(replay_arrays(fresh(), time, other, level=level), whole, 201)


@pytest.mark.slow
def test_blocks_of_any_size_and_the_path_of_the_live_loop_give_the_same(fresh):
    time, values = some()
    whole = replay_arrays(fresh(), time, values, level=1)
    waited = []
    compared(replay_arrays(fresh(), time, values, level=1, pace=waited.append), whole)
    assert waited == list(range(ROWS))
    for block in (1, 8):
        compared(replay_arrays(fresh(), time, values, level=1, block=block), whole)


@pytest.mark.slow
def test_the_governor_picks_levels_and_all_rows_are_answered(fresh):
    time, values = some()
    results = replay_arrays(fresh(), time, values, level=None, deadline=10.0)
    assert (results.level[50:] == 1).mean() > 0.9  # there is time for the best
    assert np.isfinite(results.forecast).all()
    late = fresh()
    results = replay_arrays(late, time, values, level=None, deadline=1e-9)
    assert (results.level == MANDATORY).all()
    last = values[:, 0].copy()
    for n in range(150, 155):
        last[n] = last[149]
    np.testing.assert_allclose(results.forecast, np.repeat(last, 2).reshape(-1, 2, 1), rtol=1e-6)


def test_a_row_is_answered_by_its_own_estimate_where_the_model_is_only_sometimes_in_time(fresh):
    class Alternating:
        """Expects the model to be late for 50 samples, then in time for one."""

        def __init__(self, controller):
            self.calls = 0

        def __getattr__(self, name):
            return lambda *args: None

        def decide(self, slack, queue, now):
            self.calls += 1
            self.level = 1 if self.calls % 51 == 0 else MANDATORY
            return self

    time, values = some()
    values[150:155] = 40.0
    controller = fresh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptive.prequential.Governor", Alternating)
        results = replay_arrays(controller, time, values, level=None, deadline=1.0)
    seen = np.flatnonzero(results.level == 1)
    assert seen.tolist() == [50, 101, 152, 203, 254]
    settings = replay_arrays(fresh(), time, values, level=1)
    # The model saw all samples, most at its cheapest level.
    np.testing.assert_allclose(results.forecast[50], settings.forecast[50], atol=0.2)
    assert controller.due[0] == len(values) % controller.settings.learn_every_samples


class Listening:
    """Takes down what is said to a controller, and when."""

    def __init__(self, controller, patch):
        self.heard, plain_label, plain_settle = [], controller.label, controller.settle

        def label(stream, indices, label):
            self.heard.append((self.row, indices.tolist(), label))
            return plain_label(stream, indices, label)

        def settle(estimate, time, values):
            self.row = estimate.index + 1
            return plain_settle(estimate, time, values)

        self.row = 0
        patch.setattr(controller, "label", label)
        patch.setattr(controller, "settle", settle)


def test_a_label_is_shown_when_it_is_known_and_never_before(fresh, monkeypatch):
    time, values = some()
    delay = 600.0  # ten samples
    moments = [(5, 1, 0.0), (30, 0, 0.0), (60, 1, 240.0), (100, 1, 0.0)]
    labels = [Label(time[n], label, d, time[n] + delay) for n, label, d in moments]
    labels.append(Label(time[20], 1, 0.0, time[-1] + 1.0))  # known after the end
    controller = fresh()
    listening = Listening(controller, monkeypatch)
    results = replay_arrays(controller, time, values, level=0, labels=labels[::-1])
    assert listening.heard == [
        (15, [5], 1),
        (40, [30], 0),
        (70, [60, 61, 62, 63, 64], 1),
        (110, [100], 1),
    ]
    # What followed the first must have been seen too, before it is learned.
    assert np.isnan(results.event[: 5 + LOOK]).all()
    assert np.isfinite(results.event[5 + LOOK + 5 :]).all()
    # Until the first label is known nothing differs from a replay without labels.
    plain = replay_arrays(fresh(), time, values, level=0)
    np.testing.assert_array_equal(results.score, plain.score)


def test_a_stretch_that_goes_on_after_it_is_known_is_learned_to_its_end(fresh, monkeypatch):
    time, values = some()
    controller = fresh()
    listening = Listening(controller, monkeypatch)
    label = Label(time[50], 1, 300.0, time[52])
    replay_arrays(controller, time, values, level=0, labels=[label])
    assert [i for _, indices, _ in listening.heard for i in indices] == list(range(50, 56))
    assert all(row >= max(indices) for row, indices, _ in listening.heard)


def test_progress_adds_up_to_the_rows(fresh):
    time, values = some()
    told = []
    replay_arrays(fresh(), time, values, level=0, progress=told.append)
    assert sum(told) == ROWS
