"""How JAX runs here: one thread, inline, a program as one kernel, and all compiled at the start."""

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.stages import CompilerOptions

# Compile options of a program that is one kernel: within it no call out of it may stand, and that
# is what XLA makes of sums and products otherwise.
WITHIN_A_KERNEL: CompilerOptions = {
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Of each sum it makes two, which takes longer for as few numbers as ours.
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
COMPILED = "/jax/core/compile/backend_compile_duration"  # the event of every compilation

_late: Counter[str] = Counter()


def prepare() -> None:
    """Set JAX up for small calls that are waited for; to be called before its first use.

    Asynchronous dispatch hands each call to another thread, and the default pools are as wide as
    the machine: both cost more than a small step takes, and neither can be bounded later.
    """
    os.environ.setdefault("PJRT_NPROC", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def one_kernel(program: Callable[..., Any]) -> Callable[..., Any]:
    """Make a program that XLA compiles into one kernel, and does not run operation by operation.

    On a CPU each operation is dispatched at run time, which takes longer than most of ours; there
    are hundreds in a step. XLA itself does this to small loops. The program may hold no sort, no
    scatter and no call of a library (LAPACK, top-k, FFT): XLA refuses to compile it then. It is to
    be compiled with `WITHIN_A_KERNEL`.
    """
    inner = jax.jit(program)

    def outer(*args: Any) -> Any:
        return set_xla_metadata(inner(*args), xla_cpu_small_call="true", inlineable="false")

    return outer


def give_back() -> None:
    """Give memory that compiling has used, or loading, back to the system."""
    with suppress(OSError, AttributeError):  # only the GNU C library keeps it, and has this
        ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Say that nothing should be compiled any more."""
    _late.clear()


def compiled() -> dict[str, int]:
    """What was compiled in this process after that, all the same, and how often."""
    return dict(_late)


def _heard(event: str, duration_secs: float, **about: Any) -> None:
    if event == COMPILED:
        _late[str(about.get("fun_name", "unnamed"))] += 1


jax.monitoring.register_event_duration_secs_listener(_heard)
