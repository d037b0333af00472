import logging
import os
from functools import partial

import jax
import numpy as np
import pytest

from adaptive import executables, experts, programs

ONE = np.float32(1.0)


traced = []


@partial(jax.jit, donate_argnums=0)
def double(x):
    traced.append(x)
    return {"doubled": 2 * x}


def compiled(form="double", source=programs, options=None, jitted=double):
    """The program, and whether it was traced for that."""
    traced.clear()
    jitted.clear_cache()
    program = executables.compiled(source, form, jitted, (ONE,), {"doubled": 0}, options)
    return (lambda x: program(x)["doubled"]), bool(traced)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return executables.folder()


def files(folder):
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_program_is_traced_once_and_then_loaded(folder):
    first, at_first = compiled()
    again, once_more = compiled()
    assert (at_first, once_more) == (True, False)
    assert first(ONE) == again(ONE) == 2.0
    assert len(files(folder)) == 1


def test_a_loaded_program_takes_what_is_donated_to_it():
    compiled()
    given = jax.device_put(ONE)
    compiled()[0](given)
    assert given.is_deleted()


@pytest.mark.parametrize(
    "other",
    [
        {"form": "triple"},
        {"source": executables},
        {"options": {"xla_backend_optimization_level": "2"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_program_is_another_file(folder, other):
    compiled()
    assert compiled(**other)[1]
    assert len(files(folder)) == 2


def test_another_processor_has_programs_of_its_own(folder, monkeypatch):
    compiled()
    monkeypatch.setattr(executables, "processor", lambda: "another")
    assert compiled()[1]
    assert len(files(folder)) == 2


@pytest.mark.parametrize("content", [b"", b"something else", None], ids=str)
def test_what_cannot_be_read_is_made_anew(folder, caplog, content):
    compiled()
    (file,) = files(folder)
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    with caplog.at_level(logging.WARNING):
        program, anew = compiled()
    assert anew
    assert program(ONE) == 2.0
    assert "is compiled anew" in caplog.text
    assert not compiled()[1]


def test_nothing_is_read_where_others_may_write(folder, caplog):
    compiled()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert compiled()[1]
    assert "writable by nobody else" in caplog.text
    folder.chmod(0o700)
    assert not compiled()[1]


def test_without_a_folder_programs_are_compiled_all_the_same(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert compiled()[0](ONE) == 2.0
    assert "not kept" in caplog.text


def test_what_was_not_used_for_longest_goes(folder, monkeypatch):
    monkeypatch.setattr(executables, "KEPT", 2)
    for n, form in enumerate(("old", "older")):
        compiled(form)
        os.utime(folder / executables.key(programs, form, None), (100 - n, 100 - n))
    compiled("old")  # used again
    compiled("new")
    left = {executables.key(programs, form, None) for form in ("old", "new")}
    assert {file.name for file in files(folder)} == left


def test_what_another_cache_gave_is_not_kept(folder):
    @jax.jit
    def found(x):
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        return {"doubled": 2 * x}

    assert compiled(jitted=found)[0](ONE) == 2.0
    assert files(folder) == []


def test_a_program_depends_on_what_its_module_uses_and_on_no_more():
    names = {name.removeprefix("adaptive.") for name in executables.sources(programs)}
    assert {"programs", "model", "experts", "ranks", "settings", "surprise", "usual"} <= names
    assert not {"loop", "controller", "engine", "sinks"} & names


def test_a_constant_that_was_changed_by_hand_wants_another_program(folder, monkeypatch):
    compiled()
    monkeypatch.setattr(experts, "SHARPNESS", 2 * experts.SHARPNESS)
    assert compiled()[1]
    assert len(files(folder)) == 2
