"""Compiled loops: the one place where Numba is imported.

Modules of kernels import this one and are themselves imported inside the functions that need them.
"""

from collections.abc import Callable
from typing import TypeVar

from stemma.errors import InputError

try:
    import numba
except ImportError:
    raise InputError("word vectors are trained by compiled loops: pip install 'stemma-lm[vectors]' (Numba)") from None

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a function once for each signature, and keep it on disk; it releases the interpreter's lock.

    Sums may be reordered to be vectorised, but NaN and infinity keep their meaning.
    """
    fast = {"reassoc", "contract", "nsz", "arcp", "afn"}
    return numba.njit(function, nogil=True, cache=True, fastmath=fast, error_model="numpy")
