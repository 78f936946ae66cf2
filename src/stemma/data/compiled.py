"""Compiled loops: the one place where Numba is imported.

Modules of kernels import this one and are themselves imported inside the functions that need them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from stemma.errors import InputError

try:
    import numba
    from numba.core.cgutils import create_struct_proxy
    from numba.extending import intrinsic
except ImportError:
    raise InputError("word vectors are trained by compiled loops: pip install 'stemma-lm[vectors]' (Numba)") from None

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a function once for each signature, and keep it on disk; it releases the interpreter's lock.

    Sums may be reordered to be vectorised, but NaN and infinity keep their meaning.
    """
    fast = {"reassoc", "contract", "nsz", "arcp", "afn"}
    compiled: Any = numba.njit(function, nogil=True, cache=True, fastmath=fast, error_model="numpy")
    return compiled


@intrinsic
def borrowed(typing: Any, array: Any) -> Any:
    """Return, inside a kernel, the same array without an owner; the caller keeps the owner alive.

    An owned array's reference count is changed, by atomic operations, in every call that it is passed to: a third of
    the time of loops as short as ours.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = create_struct_proxy(array)(context, builder, value=arguments[0])
        view.meminfo = view.meminfo.type(None)
        return view._getvalue()

    return array(array), generate
