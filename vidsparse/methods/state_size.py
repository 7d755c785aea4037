"""How much memory a method's state holds."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensor_bytes(state: Any) -> int:
    """Count the bytes of all tensors in a state, whatever dataclasses and containers hold them.

    Args:
        state: a tensor, dataclass, mapping, list, tuple, set, or anything else, which counts 0.

    Returns:
        Bytes of the distinct storages; two views of one tensor count once.
    """
    sizes: dict[int, int] = {}
    for tensor in _tensors(state):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _tensors(state: Any) -> Iterable[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif is_dataclass(state) and not isinstance(state, type):
        for field in fields(state):
            yield from _tensors(getattr(state, field.name))
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple | set):
        for value in state:
            yield from _tensors(value)
