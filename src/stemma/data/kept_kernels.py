"""Compiling by Numba once a machine."""

from typing import Any


def kept(function: Any, signature: str | None = None, **options: Any) -> Any:
    """Return `numba.njit` of a function that releases the interpreter's lock, compiled code kept on disk.

    Where no folder can be written it is compiled in every process. Numba tells kept kernels apart by their code and
    what they refer to, not by their options.

    Raises:
        ImportError: Numba is not installed.
    """
    import numba

    njit: Any = numba.njit
    try:
        return njit(signature, nogil=True, cache=True, **options)(function)
    except RuntimeError:  # neither beside the module nor in the user's own folder
        return njit(signature, nogil=True, **options)(function)
