"""The device and the type of numbers that a person names on the command line."""

from typing import TYPE_CHECKING

from stemma.errors import InputError, closest

if TYPE_CHECKING:
    import torch


def device_named(name: str) -> "torch.device":
    """Return the device; "auto" is CUDA where there is one. Raises InputError if it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error


def dtype_named(name: str | None) -> "torch.dtype | None":
    """Return the type, None for None. Raises InputError if there is none of that name."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in dtypes:
        raise InputError(f"--dtype {name}{closest(name, dtypes)}: expected one of {', '.join(dtypes)}")
    return None if name is None else dtypes[name]
