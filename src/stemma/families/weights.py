"""Published tensors <-> parameters of ours, both ways, by one table that each family writes down."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stemma.errors import InputError, closest
from stemma.families.directory import StoredTensors

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")


@dataclass(frozen=True)
class Stored:
    """One tensor of a published checkpoint.

    Args:
        name: in the checkpoint.
        parameters: names of ours that it holds, one after the other along their first dimension.
        transposed: the checkpoint has it [in, out], as TensorFlow's and Hugging Face's Conv1D do; ours are [out, in].
        rows: how many rows of ours are published, where ours has padding after them; None: all.
        halves: a dimension along which the checkpoint has our even places first, then our odd ones; None: our order.
    """

    name: str
    parameters: tuple[str, ...]
    transposed: bool = False
    rows: int | None = None
    halves: int | None = None


class _WithoutInitialisation(TorchFunctionMode):
    """Turns the functions of `torch.nn.init` into no-ops; on the meta device they would import the whole compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def build_empty(build: Callable[[], Model]) -> Model:
    """Return `build()` on the meta device: parameters with a shape and no memory, for `fill`."""
    with torch.device("meta"), _WithoutInitialisation():
        return build()


def publish(model: nn.Module, table: Iterable[Stored]) -> Iterator[tuple[str, Tensor]]:
    """Yield the published name and tensor of each row of `table`; only those in another form are copies."""
    parameters = dict(model.named_parameters())
    for stored in table:
        parts = [parameters[name].detach()[: stored.rows] for name in stored.parameters]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if stored.halves is not None:
            pairs = joined.unflatten(stored.halves, (-1, 2))
            joined = torch.cat(pairs.unbind(stored.halves + 1), dim=stored.halves)
        yield stored.name, joined.t().contiguous() if stored.transposed else joined


def fill(
    model: nn.Module,
    table: Sequence[Stored],
    tensors: Mapping[str, Tensor],
    *,
    ignored: Collection[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Give a model of `build_empty` its parameters, read from `tensors` one at a time.

    Every parameter is allocated once, with its final dtype (default: that of the table's first tensor) and on its
    final device (default: the CPU), and copied into from the memory-mapped file; padding rows are zero. Tensors that
    are neither in `table` nor `ignored` are an error: the model would compute something else without them.

    Raises:
        InputError: tensors are missing, left over, of another shape or not floating point.
    """
    _check_names({stored.name for stored in table}, set(tensors) - set(ignored), tensors)
    dtype = dtype or tensors[table[0].name].dtype
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for stored in table:
        tensor = tensors[stored.name]
        _check_tensor(stored, tensor, [shapes[name] for name in stored.parameters], tensors)
        whole = tensor.t() if stored.transposed else tensor
        if stored.halves is not None:
            dim = stored.halves
            whole = torch.stack(whole.chunk(2, dim), dim + 1).flatten(dim, dim + 1)
        parts = whole.chunk(len(stored.parameters))
        for name, part in zip(stored.parameters, parts, strict=True):
            parameter = torch.empty(shapes[name], dtype=dtype, device=device or "cpu")
            parameter[: len(part)].copy_(part)
            parameter[len(part) :].zero_()
            state[name] = parameter
    model.load_state_dict(state, assign=True)


def _check_names(expected: set[str], found: set[str], tensors: Mapping[str, Tensor]) -> None:
    for what, names in (("missing", expected - found), ("not part of the model", found - expected)):
        if names:
            first = min(names)
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{_place(tensors, first)}: tensor '{first}'{more} is {what}")


def _check_tensor(stored: Stored, tensor: Tensor, shapes: Sequence[torch.Size], tensors: Mapping[str, Tensor]) -> None:
    rows = sum(stored.rows or shape[0] for shape in shapes)
    expected = [rows, *shapes[0][1:]]
    if stored.transposed:
        expected.reverse()
    if list(tensor.shape) != expected:
        place = _place(tensors, stored.name)
        raise InputError(f"{place}: tensor '{stored.name}' is {list(tensor.shape)}, the config makes it {expected}")
    if not tensor.is_floating_point():
        place = _place(tensors, stored.name)
        raise InputError(f"{place}: tensor '{stored.name}' is {tensor.dtype}, expected floating point")


def _place(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tensors.file(name)) if isinstance(tensors, StoredTensors) else "checkpoint"


# Keys of config.json that are the library's, not a family's; the last three are of an output layer.
_GENERAL = frozenset(
    ("model_type", "architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")
    + ("id2label", "label2id", "problem_type")
)


def own_config(published: Mapping[str, Any], kind: type[Config]) -> Config:
    """Return a configuration of ours that stands in config.json by its own names.

    Raises:
        InputError: a key that it does not have.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    given = {key: value for key, value in published.items() if key not in _GENERAL}
    for key in given:
        if key not in known:
            raise InputError(f"config.json: unknown key '{key}' for {published['model_type']}{closest(key, known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def require_counts(values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise InputError if a value of config.json is no positive whole number."""
    for key in keys:
        value = values.get(key)
        if type(value) is not int or value < 1:
            raise InputError(f"config.json: {key} is {value!r}, expected a positive whole number")


def refuse_set(values: Mapping[str, Any], keys: Iterable[str], where: object = "config.json") -> None:
    """Raise InputError if an option is set by which a model computes something else than ours."""
    for key in keys:
        if values.get(key):
            raise InputError(f"{where}: {key} is set, which this library does not compute")
