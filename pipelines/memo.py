"""Remember what was read from a tensor, so that a device is waited for once per tensor."""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ValueT = TypeVar("ValueT")


class TensorMemo(Generic[ValueT]):
    """Results of a function per tensor object; pipelines pass the same one at every step."""

    def __init__(self, function: Callable[[Tensor], ValueT]) -> None:
        self._function = function
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __call__(self, tensor: Tensor) -> ValueT:
        """Return the function's value; computed anew after an in-place write."""
        version = version_of(tensor)
        if version is None:
            return self._function(tensor)
        known: tuple[int, ValueT] | None = self._known.get(tensor)
        if known is None or known[0] != version:
            known = version, self._function(tensor)
            self._known[tensor] = known
        return known[1]


def version_of(value: object) -> int | None:
    """Count in-place writes, so that a loop may refill one tensor; None: they leave no trace."""
    if not isinstance(value, Tensor):
        return 0
    return None if value.is_inference() else value._version


def count_rows(mask: Tensor) -> tuple[int, ...]:
    """Count what a (B, T) mask of zeros and ones keeps of each row; waits for its device."""
    return tuple(int(n) for n in mask.sum(dim=1).tolist())
