from dataclasses import dataclass, field

import torch

from vidsparse.methods.base import build_method
from vidsparse.methods.state_size import tensor_bytes


@dataclass
class State:
    mask: torch.Tensor
    more: dict[int, tuple[int, torch.Tensor]] = field(default_factory=dict)
    nothing: None = None


def test_every_tensor_counts_once_however_it_is_held():
    x = torch.zeros(10, dtype=torch.float32)
    state = State(x, {0: (3, torch.zeros(5, dtype=torch.uint8)), 1: (4, x[2:])})
    assert tensor_bytes(state) == 40 + 5
    assert tensor_bytes([state, {x}]) == 45


def test_what_holds_no_tensor_counts_nothing():
    assert tensor_bytes(None) == tensor_bytes(State) == tensor_bytes((1, "x")) == 0


def test_methods_count_their_states():
    assert build_method("random", {}).state_bytes(None) == 0
