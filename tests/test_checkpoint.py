import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from adaptive import checkpoint
from adaptive.checkpoint import CheckpointError, check_writable, fingerprint, load, save

ROOT = Path(__file__).parent.parent


def generation(n):
    return {"a": np.full(5000, n), "b": np.full((50, 100), float(n)), "c": np.array(n)}


def saved(path):
    """Return the generation that `load` finds, after checking that it is all of one piece."""
    arrays, header = load(path, "f")
    n = header["n"]
    for name, array in generation(n).items():
        np.testing.assert_array_equal(arrays[name], array)
    return n


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (4, 5)])
def test_arrays_come_back_as_they_were(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2, shape).astype(dtype)
    save(tmp_path / "c", {"x": array}, {}, "f")
    arrays, _ = load(tmp_path / "c", "f")
    assert arrays.keys() == {"x"}
    assert arrays["x"].dtype == array.dtype
    assert arrays["x"].shape == array.shape
    np.testing.assert_array_equal(arrays["x"], array)


def test_odd_floats_and_other_layouts_and_the_header_come_back(tmp_path):
    arrays = {
        "odd": np.array([np.nan, np.inf, -0.0, 5e-324]),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "every other": np.arange(10)[::2],
        "big-endian": np.arange(5, dtype=">i4"),
    }
    header = {"n": 1, "names": ["a", "ä"], "deep": {"x": None, "y": 0.1}}
    save(tmp_path / "c", arrays, header, "f")
    back, head = load(tmp_path / "c", "f")
    assert head == header
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    assert np.signbit(back["odd"][2])


def test_a_file_is_one_of_safetensors(tmp_path):
    kinds = ["float16", "float32", "float64", "bool", "uint16", "int8", "int16", "int64"]
    arrays = {f"{n} {kind}": np.full(n, 2).astype(kind) for n, kind in enumerate(kinds)}
    header = {"deep": [{"er": {"one": "ä"}}, [], {}], "n": None}
    save(tmp_path / "c", arrays, header, "f")
    ours = (tmp_path / "c").read_bytes()
    length = int.from_bytes(ours[:8], "little")
    metadata = json.loads(ours[8 : 8 + length])["__metadata__"]
    assert length % 8 == 0
    assert metadata["header"] == json.dumps(header)
    found = decode(ours)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_checkpoint_without_arrays_is_one(tmp_path):
    save(tmp_path / "c", {}, {"n": 1}, "f")
    assert load(tmp_path / "c", "f") == ({}, {"n": 1})


def test_the_generation_before_is_kept_and_taken_when_the_newest_is_torn(tmp_path, caplog):
    path = tmp_path / "c"
    for n in range(3):
        save(path, generation(n), {"n": n}, "f")
    assert saved(path) == 2
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with caplog.at_level(logging.WARNING):
            assert saved(path) == 1
    assert "torn or damaged" in caplog.text
    assert "c.previous" in caplog.text
    save(path, generation(3), {"n": 3}, "f")  # must not push the torn one over the good one
    assert saved(path) == 3
    path.unlink()
    assert saved(path) == 1


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_bit_is_found(tmp_path, place):
    path = tmp_path / "c"
    save(path, generation(1), {"n": 1}, "f")
    blob = bytearray(path.read_bytes())
    blob[int(place * len(blob))] ^= 4
    path.write_bytes(blob)
    with pytest.raises(CheckpointError, match="torn or damaged") as caught:
        load(path, "f")
    assert caught.value.reason == "corrupt"


def test_a_flipped_bit_in_the_header_is_found(tmp_path):
    path = tmp_path / "c"
    save(path, {}, {"gain": 17}, "f")
    path.write_bytes(path.read_bytes().replace(b"17", b"16"))
    with pytest.raises(CheckpointError, match="checksum"):
        load(path, "f")


def test_a_missing_checkpoint_has_its_own_reason(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        load(tmp_path / "no" / "c", "f")
    assert caught.value.reason == "missing"


def test_other_settings_and_another_format_are_refused_even_with_a_good_one_before(tmp_path):
    path = tmp_path / "c"
    save(path, generation(0), {"n": 0}, "f")
    save(path, generation(1), {"n": 1}, "other")
    with pytest.raises(CheckpointError, match="must be of the settings f, got other") as caught:
        load(path, "f")
    assert caught.value.reason == "fingerprint"
    path.write_bytes(encode({"x": np.zeros(2)}, {"version": "99"}))
    with pytest.raises(
        CheckpointError, match=f"must be of format {checkpoint.VERSION}, got 99"
    ) as caught:
        load(path, "f")
    assert caught.value.reason == "version"


def test_a_file_that_is_no_checkpoint_of_ours_is_called_damaged(tmp_path):
    (tmp_path / "c").write_bytes(encode({"x": np.zeros(2)}))
    with pytest.raises(CheckpointError, match="torn or damaged"):
        load(tmp_path / "c", "f")


@pytest.mark.parametrize(
    ("arrays", "header"),
    [
        ({"x": np.array(["text"])}, {}),
        ({"x": np.array([object()])}, {}),
        ({}, {"x": float("nan")}),
        ({}, {"x": object()}),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_the_old_one(tmp_path, arrays, header):
    path = tmp_path / "c"
    save(path, generation(1), {"n": 1}, "f")
    with pytest.raises(CheckpointError, match="arrays must be of bools") as caught:
        save(path, arrays, header, "f")
    assert caught.value.reason == "content"
    assert saved(path) == 1


def test_a_folder_that_cannot_be_written_to_is_told_at_the_start_and_at_save(tmp_path):
    (tmp_path / "file").write_text("in the way")  # binds root, too
    path = tmp_path / "file" / "c"
    for attempt in (lambda: check_writable(path), lambda: save(path, {}, {}, "f")):
        with pytest.raises(CheckpointError, match="must exist and be writable") as caught:
            attempt()
        assert caught.value.reason == "unwritable"
    with pytest.raises(CheckpointError, match="is a folder"):
        check_writable(tmp_path)


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "deep" / "er" / "c")
    assert list((tmp_path / "deep" / "er").iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_or_read_only_disk_leaves_the_old_one_and_no_litter(tmp_path, monkeypatch, call):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "c"
    save(path, generation(1), {"n": 1}, "f")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, call, refuse)
        with pytest.raises(CheckpointError, match="No space left"):
            save(path, generation(2), {"n": 2}, "f")
    assert saved(path) == 1
    assert not (tmp_path / "c.partial").exists()


def test_without_hard_links_there_is_still_always_a_whole_one(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoint.os, "link", refuse)
    path = tmp_path / "c"
    for n in range(3):
        save(path, generation(n), {"n": n}, "f")
    assert saved(path) == 2
    path.unlink()
    assert saved(path) == 1


DIE = """
import os, signal, sys
from pathlib import Path
from adaptive import checkpoint
from tests.test_checkpoint import generation

path, links, left = Path(sys.argv[1]), sys.argv[2] == "links", int(sys.argv[3])

def before(call):
    def guarded(*args):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*args)
    return guarded

def no_link(*args):
    raise OSError("no links here")

os.link = os.link if links else no_link
for name in ("open", "fsync", "link", "replace", "close", "fdopen"):
    setattr(os, name, before(getattr(os, name)))
n = 0
while True:
    checkpoint.save(path, generation(n), {"n": n}, "f")
    print(n, flush=True)
    n += 1
"""


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", DIE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("links", ["links", "no links"])
def test_a_process_killed_at_any_step_of_a_save_leaves_a_whole_checkpoint(tmp_path, links):
    steps, started = 9, []  # system calls of a save; the second and third are gone through
    for left in range(steps, 3 * steps + 1):
        path = tmp_path / str(left) / "c"
        path.parent.mkdir()
        started.append((path, start(path, links, left)))
        if len(started) == 2 or left == 3 * steps:
            for where, process in started:
                done = process.communicate(timeout=60)[0].split()
                assert process.returncode == -signal.SIGKILL
                last = int(done[-1]) if done else -1
                assert saved(where) in (last, last + 1)
            started.clear()


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 5, 20])
def test_a_process_killed_from_outside_leaves_a_whole_checkpoint(tmp_path, saves):
    process = start(tmp_path / "c", "links", 10**9)
    assert process.stdout is not None
    for _ in range(saves):
        last = int(process.stdout.readline())
    process.kill()
    rest = process.communicate(timeout=60)[0].split()
    last = int(rest[-1]) if rest else last
    assert saved(tmp_path / "c") in (last, last + 1)
    save(tmp_path / "c", generation(77), {"n": 77}, "f")  # what it left behind is in no one's way
    assert saved(tmp_path / "c") == 77


def test_equal_settings_have_equal_fingerprints_and_others_do_not():
    one = fingerprint({"levels": [1, 2], "width": 0.5})
    assert one == fingerprint({"width": 0.5, "levels": [1, 2]})
    assert one != fingerprint({"levels": [2, 1], "width": 0.5})
