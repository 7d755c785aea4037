"""Everything a run needs is on the pipeline's device, tried without a second device.

The meta device stands in for it: its tensors are wrappers around tensors of the CPU, and an
operation that takes both kinds is an error, as CUDA's are.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import vidsparse
from vidsparse import attention
from vidsparse.methods import random_blocks
from vidsparse.methods.random_blocks import RandomBlocks
from vidsparse.pipelines.processors import attention_op
from vidsparse.pipelines.testing_sizes import RELEASED_SIZES, released_heads

pytestmark = pytest.mark.filterwarnings("ignore")

AWAY = "meta"
_ATEN = torch.ops.aten
# On CUDA these take tensors of the CPU as well: copies and indices.
MIXES = (_ATEN.copy_, _ATEN._to_copy, _ATEN.index, _ATEN.index_put, _ATEN.index_put_)

SHORTER = {"ltx2": {"num_frames": 3}, "ltx_video": {"num_frames": 5}}


class Away(Tensor):
    """A tensor of the other device; ``near`` has its values."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "Away":
        made = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=AWAY,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()


class TwoDevices(TorchDispatchMode):
    """Makes tensors that are asked for on the other device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "vidsparse":
            # Its body runs on tensors of the other device, not on their values.
            with self:
                return attention_op._init_fn(*args)
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; the result belongs where it was asked for, or where its inputs are."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    strangers = [x for x in tensors if not isinstance(x, Away) and x.dim() and x.numel()]
    if away and strangers and func.overloadpacket not in MIXES:
        shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
        raise RuntimeError(f"{func}: tensors of {shapes} are on another device")
    asked = kwargs.get("device")
    belongs = bool(away) if asked is None else torch.device(asked).type == AWAY
    kwargs = kwargs if asked is None else {**kwargs, "device": "cpu"}
    results = func(*tree_map(near, args), **tree_map(near, kwargs))
    # What an operation in place returns is what it was given.
    given = {id(x.near): x for x in away}

    def put(x: Any) -> Any:
        if not isinstance(x, Tensor) or id(x) in given:
            return given.get(id(x), x)
        return Away(x) if belongs else x

    return tree_map(put, results)


def near(x: Any) -> Any:
    return x.near if isinstance(x, Away) else x


class MakeAndMove(TorchFunctionMode):
    """Lets what makes tensors out of numbers make them on the other device, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor):
            return func(*args, **kwargs)
        data, *rest = args
        device = kwargs.pop("device", data.device if isinstance(data, Away) else "cpu")
        return func(tree_map(near, data), *rest, **kwargs).to(device)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Mochi's only: to float32, which no CPU does.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    # There are no generators on a device of type meta.
    near_generator = partial(random_blocks.site_generator, device=torch.device("cpu"))
    monkeypatch.setattr(random_blocks, "site_generator", lambda *args: near_generator(*args[:2]))
    with TwoDevices(), MakeAndMove(), torch.no_grad():
        yield


def test_two_devices_in_one_operation_are_found(two_devices: None) -> None:
    far = torch.ones(2, device=AWAY)
    assert isinstance(far + torch.tensor(1.0), Away)
    assert not isinstance(torch.ones(2), Away)
    with pytest.raises(RuntimeError, match="on another device"):
        far + torch.ones(2)


@pytest.mark.parametrize("name", RELEASED_SIZES)
def test_dense_and_sparse_runs_stay_on_their_device(
    name: str, two_devices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT_SEQUENCE", 0)
    tiny = released_heads(name, device=AWAY)
    assert isinstance(tiny.latents(changes=SHORTER.get(name)), Away)
    method = RandomBlocks(0.98, blocks=(4, 4))
    with vidsparse.enabled(tiny.pipe, method, dense_steps=0) as handle:
        assert isinstance(tiny.latents(changes=SHORTER.get(name)), Away)
    assert handle.summary().sparse_calls >= 4
