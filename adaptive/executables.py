"""Compiled programs, kept on disk: a later start on the same machine loads them and traces nothing.

To trace a program takes longer than to load what it was compiled to, so it is not looked up by its
text, as in JAX's own cache, but by what the text comes from: its form, our sources and JAX. What is
loaded was compiled for this very processor, and needs less memory than what is compiled here.
"""

import hashlib
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.stages import Compiled, CompilerOptions

LOG = logging.getLogger(__name__)
KEPT = 128  # programs on disk; the ones that were not used for longest go
FOREIGN = "/jax/compilation_cache/cache_hits"  # what another cache gave cannot be written again

_heard: Counter[str] = Counter()


def folder() -> Path:
    """Where compiled programs are kept between starts."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "adaptive-attention" / "programs"


def compiled(
    source: ModuleType,
    form: Any,
    jitted: Any,
    args: tuple[Any, ...],
    out: Any,
    options: CompilerOptions | None = None,
) -> Compiled:
    """Load a program, or compile and keep it.

    Args:
        source: The module that it is written in; with those that this imports of our own.
        form: All else that it depends on; what is equal looks equal.
        jitted: The program, by `jax.jit`; traced if it is not there.
        args: What it is traced with; shapes are enough.
        out: Anything that is nested as what it returns.
        options: To compile it with.
    """
    try:
        path = folder() / key(source, form, options)
    except (OSError, RuntimeError) as error:  # no home, no sources
        LOG.warning("a compiled program is not kept: %s", error)
        return jitted.lower(*args).compile(options)
    if program := load(path, args, out):
        return program
    before = _heard[FOREIGN]
    program = jitted.lower(*args).compile(options)
    if _heard[FOREIGN] == before:
        try:
            content, *_ = serialize_executable.serialize(program)
            keep(path, content)
        except (OSError, ValueError, NotImplementedError) as error:
            LOG.warning("a compiled program is not kept: %s", error)
    return program


def load(path: Path, args: tuple[Any, ...], out: Any) -> Compiled | None:
    """Read a program; None where there is none that can be read.

    It is machine code, so where others than its owner may write nothing is read.
    """
    trees = jax.tree.structure((args, {})), jax.tree.structure(out)
    try:
        about = path.parent.stat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise PermissionError(f"{path.parent} must be ours, and writable by nobody else")
        program = serialize_executable.deserialize_and_load(path.read_bytes(), *trees)
        path.touch()
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with a file, the program can be made anew
        LOG.warning("%s cannot be read, its program is compiled anew: %s", path, error)
        return None
    return program


def keep(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and remove the oldest of too many.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
    with suppress(OSError):  # another process may do the same
        kept = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime)
        for one in kept[:-KEPT]:
            one.unlink()


def key(source: ModuleType, form: Any, options: CompilerOptions | None) -> str:
    """The name of a program's file.

    Raises:
        OSError: The sources cannot be read.
    """
    flags = os.environ.get("XLA_FLAGS", ""), os.environ.get("PJRT_NPROC", "")
    versions = sys.version, *map(version, ("jax", "jaxlib", "numpy", "optax"))
    text = repr((form, options, flags, versions, jax.config.read("jax_enable_x64"), processor()))
    digest = hashlib.sha256(text.encode())
    for name, module in sorted(sources(source).items()):
        digest.update(f"{name} {constants(module)}".encode())
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.hexdigest()


def sources(
    module: ModuleType, known: dict[str, ModuleType] | None = None
) -> dict[str, ModuleType]:
    """A module and those that it uses of its own package, by name."""
    known = {} if known is None else known
    if module.__name__ not in known:
        known[module.__name__] = module
        for name in used(module):
            sources(sys.modules[name], known)
    return known


def constants(module: ModuleType) -> dict[str, Any]:
    """What is set in a module now: who tries another number there wants another program."""
    own = vars(module).items()
    return {
        name: x for name, x in own if name[0] != "_" and isinstance(x, int | float | str | tuple)
    }


def used(module: ModuleType) -> Iterator[str]:
    """The names of the modules of its package that a module has something of."""
    package = module.__name__.partition(".")[0]
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        if isinstance(name, str) and name.startswith(f"{package}.") and name in sys.modules:
            yield name


def processor() -> str:
    """What the processor can do: a program compiled for another may not run."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = dict(line.split("\t", 1) for line in lines if "\t" in line)
        return platform.machine() + repr([said.get(k) for k in ("model name", "flags", "Features")])
    return platform.machine() + platform.processor()


jax.monitoring.register_event_listener(lambda event, **_: _heard.update((event,)))
