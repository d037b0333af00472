"""What is recorded of a machine, and the worlds made of it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from adaptive import recording, traces
from adaptive.recording import SIZES
from adaptive.scenarios import GATEWAY, RECORDED, TICK, world
from adaptive.traces import BLOCK, FILE, HELD_OUT, LOADS, NEAR, PARTS, TUNING, trace


class Twice:
    """A model whose calls take twice what they should."""

    costs = ({2: 1e-3, 16: 2e-3, 64: 4e-3}, {2: 2e-3, 16: 3e-3, 64: 9e-3})

    def __init__(self):
        self.calls, self.process = [], SimpleNamespace(child=SimpleNamespace(pid=0))

    async def beside(self, name, level, block):
        import asyncio

        samples = int(np.count_nonzero(block[:, 0] >= 0))
        self.calls.append((name, level, samples, block[0, 0]))
        self.took = 2 * self.costs[level][samples]
        await asyncio.sleep(self.took + 1e-3)  # on the way, which is no slowness of the model's


def test_levels_and_sizes_take_turns_and_the_log_ratio_is_kept(virtual_time):
    remote = Twice()
    found = virtual_time.run(recording.calls(remote, list(remote.costs), 6.0))
    names, levels, sizes, streams = zip(*remote.calls, strict=True)
    assert set(names) == {"rehearse"}  # nothing is learned
    assert levels[:4] == (0, 1, 0, 1)
    assert len(set(streams)) > 100
    wanted = [level * 3 + SIZES.index(size) for level, size in zip(levels, sizes, strict=True)]
    np.testing.assert_array_equal(found["kind"], wanted)
    counts = np.bincount(found["kind"])
    assert counts.max() - counts.min() <= 1
    np.testing.assert_allclose(found["ratio"], math.log(2), atol=1e-3)
    assert found["ratio"].dtype == np.float16
    assert (np.diff(found["time"]) >= recording.APART - 1e-6).all()


class Neighbours:
    """Others, that take what they are told."""

    def __init__(self, monkeypatch, *shares):
        self.shares = iter(shares)
        monkeypatch.setattr(recording, "Watch", lambda *pids: self)

    def others(self):
        return next(self.shares)


def test_a_recording_waits_for_others_but_not_for_ever(virtual_time, monkeypatch):
    Neighbours(monkeypatch, 0.9, 0.5, 0.05, *[0.7] * 100)
    assert virtual_time.run(recording.calm()) == 0.05
    assert virtual_time.run(recording.calm()) == 0.7


def test_a_piece_in_which_others_came_is_made_anew(virtual_time, monkeypatch):
    # Calm and not so later, calm twice, then calm at last.
    Neighbours(monkeypatch, 0.0, 0.9, 0.0, 0.01, 0.0, 0.02)
    remote = Twice()
    load = recording.LOADS["idle"]
    about = remote, list(remote.costs), load, 2 * recording.PIECE
    found, others = virtual_time.run(recording.pieces(*about))
    assert others == 0.02
    assert len(found["time"]) < len(remote.calls)
    assert (np.diff(found["time"]) > 0).all()
    assert 1.9 * recording.PIECE < found["time"][-1] < 2 * recording.PIECE


def test_what_others_take_is_a_share():
    assert 0 <= recording.Watch().others() <= 1


def test_what_comes_along_is_small_and_whole():
    assert FILE.stat().st_size < 1_000_000
    for part in PARTS:
        for load in LOADS:
            found = trace(load, part)
            assert len(found.residuals) == 3
            assert found.time[-1] > 20.0
            parts = found.slow, *found.residuals, *found.stalls
            assert all(np.isfinite(one).all() for one in parts)
            assert all(one.min() >= 0.0 for one in found.stalls)
    assert not np.array_equal(trace("idle", TUNING).slow, trace("idle", HELD_OUT).slow)


def test_a_slowdown_and_a_residual_make_the_recorded_cost_again():
    found = trace("busy")
    with np.load(FILE) as file:
        time, ratio, kind = (file[f"{TUNING}/busy/{name}"] for name in ("time", "ratio", "kind"))
        table = json.loads(file["about"].tobytes())["nominal_us"]
        nominals = [{int(size): cost for size, cost in row.items()} for row in table]
        usual, kinds = (file[f"{TUNING}/idle/{name}"] for name in ("ratio", "kind"))
    for one in (0, 4, 8):
        level = one // 3
        mine = np.flatnonzero(kind // 3 == level)
        which = np.flatnonzero(kind[mine] == one)[100:110]
        at = time[mine[which]].astype(float)
        nominal = 1e-6 * nominals[level][SIZES[one % 3]]
        made = found.slowdown(at - time[0], 0.0) + found.residuals[level][which]
        made += np.median(usual[kinds == one].astype(float))
        cost = nominal * np.exp(made) + found.stalls[level][which]
        wanted = nominal * np.exp(ratio[mine[which]].astype(float))
        np.testing.assert_allclose(cost, wanted, rtol=2e-3)


def test_residuals_are_drawn_in_blocks_of_the_same_moments():
    found = trace("memory")
    noise, stalls = found.scatter(3 * BLOCK, 3, np.random.default_rng(0))
    for level in range(3):
        known, still = found.residuals[level], found.stalls[level]
        for n, block in enumerate(noise[:, level].reshape(3, BLOCK)):
            (starts,) = np.nonzero(known == block[0])
            (same,) = [s for s in starts if np.array_equal(known[s : s + BLOCK], block)]
            stood = stalls[n * BLOCK : (n + 1) * BLOCK, level]
            np.testing.assert_array_equal(still[same : same + BLOCK], stood)
    assert noise.shape == stalls.shape == (3 * BLOCK, 3)
    for made in found.scatter(5, 4, np.random.default_rng(0)):
        np.testing.assert_array_equal(made[:, 3], made[:, 2])


def test_calls_that_stand_still_are_no_slowdown_and_do_so_however_long_they_are():
    for load in ("crowded", "crowded, memory"):
        for part in PARTS:
            found = trace(load, part)
            assert np.diff(np.quantile(found.slow, (0.05, 0.95))) < 0.25
            assert 0.2 < np.mean(np.concatenate(found.stalls) > 0.0) < 0.45
            for stalls in found.stalls:
                assert 2e-3 < np.median(stalls[stalls > 0.0]) < 5e-3
    assert NEAR >= 1


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_world_is_another_with_what_is_held_out(name):
    one, other = (world(name, GATEWAY, 3, 2000, 0, held_out) for held_out in (False, True))
    np.testing.assert_array_equal(one.arrivals, other.arrivals)
    assert (one.slow != other.slow).any()
    assert len(one.slow) == int(one.length / TICK) + 2
    assert traces.FILE.exists()
