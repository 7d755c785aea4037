"""Muon for the hidden matrices and kernels, AdamW for the rest, and an average of the weights."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of (N, R, C) matrices near 1 by Newton-Schulz steps.

    Source: Muon, https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # bfloat16 is enough for an update and runs on the tensor cores.
    x = update.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised, all matrices of one shape at once.

    Convolution kernels count as matrices of one row for each output channel.
    The update's size matches AdamW's (0.2 sqrt(max(R, C))), so both share one learning rate.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                self._step_same_shape(group, same)

    def _step_same_shape(self, group: dict[str, float], params: list[nn.Parameter]) -> None:
        grads = [p.grad for p in params]
        buffers = []
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum"])
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        # Nesterov: look ahead along the momentum.
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
        matrices = torch.stack([one.flatten(1) for one in ahead])
        scale = 0.2 * max(matrices.shape[1:]) ** 0.5
        update = orthogonalise(matrices).view(len(params), *params[0].shape)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * scale)


def split_parameters(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Separate the transformer blocks' matrices from everything else."""
    matrices, others = [], []
    for module in modules:
        for name, p in module.named_parameters():
            if p.requires_grad:
                hidden = name.startswith("blocks.") and p.ndim == 2
                (matrices if hidden else others).append(p)
    return matrices, others


class Average:
    """Exponential moving average of parameters, with a warm-up of the decay."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.live = {
            f"{key}.{name}": p for key, m in modules.items() for name, p in m.named_parameters()
        }
        self.shadow = {name: p.detach().float().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [p.detach() for p in self.live.values()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and the average; call again to undo."""
        for name, p in self.live.items():
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
