"""The one door to the C layer: ``native.core()`` and ``native.own_tls()`` give cffi's (ffi, lib).

Nothing is loaded before the first call, so that everything above imports on a machine without a
compiler. What the functions do, and what they answer, is in rseqlab.h.
"""

from functools import cache
from importlib import import_module

from rseqlab.errors import LabError


class NativeUnavailable(LabError):
    """The compiled layer is not there, or the loader refused it."""


@cache
def _load(module: str):
    try:
        loaded = import_module(f"rseqlab.native.{module}")
    except ImportError as error:
        raise NativeUnavailable(
            f"The compiled layer rseqlab.native.{module} could not be loaded: {error}. "
            "It needs Linux and a C compiler; `make setup` builds it."
        ) from error
    return loaded.ffi, loaded.lib


def core():
    """(ffi, lib) of registration, reading and counting."""
    return _load("_core")


def own_tls():
    """(ffi, lib) of the area in initial-exec TLS; a loader may refuse it where :func:`core` loads."""
    return _load("_own_tls")


def unavailable() -> str | None:
    """Why the C layer cannot be used here, or None where it can."""
    try:
        _, lib = core()
    except NativeUnavailable as error:
        return str(error)
    if not lib.rl_signature():
        return "This architecture has no port: critical sections exist for x86_64 and aarch64."
    return None


def require() -> None:
    """Raise :class:`NativeUnavailable` unless the C layer is there. Set-up ends with this check."""
    core()
