"""Compiled loops of word vectors.

Modules of kernels import this one and are themselves imported inside the functions that need them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from stemma.data.kept_kernels import kept
from stemma.errors import InputError

try:
    import numba  # noqa: F401
    from llvmlite import ir
    from numba.core.cgutils import create_struct_proxy, get_or_insert_function, unpack_tuple
    from numba.core.types import none
    from numba.extending import intrinsic
except ImportError:
    raise InputError("word vectors are trained by compiled loops: pip install 'stemma-lm[vectors]' (Numba)") from None

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a function once for each signature, and keep it on disk; it releases the interpreter's lock.

    Sums may be reordered to be vectorised, but NaN and infinity keep their meaning.
    """
    fast = {"reassoc", "contract", "nsz", "arcp", "afn"}
    compiled: Any = kept(function, fastmath=fast, error_model="numpy")
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


@intrinsic
def prefetch(typing: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask, inside a kernel, for the cache line of one element of a matrix; whoever reads it later waits less."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = create_struct_proxy(array)(context, builder, value=arguments[0])
        byte, word = ir.IntType(8), ir.IntType(32)
        strides = unpack_tuple(builder, view.strides)
        offset = builder.add(builder.mul(arguments[1], strides[0]), builder.mul(arguments[2], strides[1]))
        place = builder.gep(builder.bitcast(view.data, byte.as_pointer()), [offset])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, word(0), word(3), word(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return none(array, row, column), generate
