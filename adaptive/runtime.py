"""How JAX runs here: one thread, inline, compiled programs kept on disk."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Where compiled programs are kept between starts."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "adaptive-attention" / "xla"


def prepare() -> None:
    """Set JAX up for small calls that are waited for; to be called before its first use.

    Asynchronous dispatch hands each call to another thread, and the default pools are as wide as
    the machine: both cost more than a small step takes, and neither can be bounded later. Programs
    are kept on disk, so that only the first start on a machine compiles.
    """
    os.environ.setdefault("PJRT_NPROC", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
