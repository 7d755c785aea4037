"""Inputs and slow twins shared by the method tests."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidsparse.attention import run_plan
from vidsparse.layout import inverse_order
from vidsparse.plan import CallSite


def site(step=5, layer=3, branch=0, generation=0):
    return CallSite("transformer", layer, 8, step, 20, 0.5, branch, generation)


def qkv(seed, B, H, S, D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, S, D, generator=generator).to(dtype) for _ in range(3)]


def video(seed, layout, *, B=1, H=2, D=16, spread=1.5):
    """Tokens whose attention has structure: neighbours in the sequence are alike."""
    q, k, v = qkv(seed, B, H, layout.num_tokens, D)
    walk = torch.linspace(0, 3, layout.num_tokens)
    for x in (q, k):
        x[..., 0] += spread * 3 * torch.cos(walk)
        x[..., 1] += spread * 3 * torch.sin(walk)
    return q, k, v


def run(method, steps, layout, *, seed=0, frozen=False, state=None, start=5, **where):
    """Call after call with slowly changing tokens; plans, tokens and outputs."""
    state = method.init_state() if state is None else state
    tokens, fresh = video(seed, layout), video(seed + 1000, layout)
    calls = []
    for n in range(steps):
        share = 0.0 if frozen else 0.1 * n
        mixed = [(1 - share) * a + share * b for a, b in zip(tokens, fresh, strict=True)]
        call = site(step=start + n, **where)
        plan = method.plan(*mixed, layout, call, state)
        output = run_plan(*mixed, plan)
        method.observe(output, plan, call, state)
        calls.append((plan, mixed, output))
    return calls


def natural_mask(plan, B, H):
    """(B, H, S, S) bool: the pairs a plan keeps, queries and keys in natural order."""
    wide = plan.mask.token_mask()
    wide = wide.expand(B, H, *wide.shape[2:])
    for dim, order in ((2, plan.q_order), (3, plan.kv_order)):
        if order is not None:
            back = inverse_order(order.expand(B, H, -1)).long()
            back = back[..., :, None] if dim == 2 else back[..., None, :]
            wide = wide.gather(dim, back.expand(wide.shape))
    return wide


def masked_attention(q, k, v, keep):
    scores = (q.double() @ k.double().mT) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~keep, -torch.inf), -1) @ v.double()


class NoHostSync(TorchDispatchMode):
    """Fails on operations that make a GPU's caller wait for it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[-1].split(".")[0]
        assert name not in self.WAITING, f"{func} waits for the device"
        if name in ("index", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{func} by a bool"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def cases():
    return SimpleNamespace(
        site=site,
        qkv=qkv,
        video=video,
        run=run,
        natural_mask=natural_mask,
        masked_attention=masked_attention,
        no_host_sync=NoHostSync,
    )
