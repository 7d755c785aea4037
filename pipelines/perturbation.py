"""Recognise the passes of guiders that skip layers or attention scores; they stay dense."""

from typing import Any

import torch
from torch import nn

# Matched by name: importing diffusers' guiders takes a second, and they are private.
_SKIP_MODE = "AttentionScoreSkipFunctionMode"
_SKIP_HOOKS = (
    "AttentionProcessorSkipHook",
    "FeedForwardSkipHook",
    "SmoothedEnergyGuidanceHook",
    "TransformerBlockSkipHook",
)
REASON = "perturbed guidance"


def scores_are_skipped() -> bool:
    """Say whether a guider takes values for attention outputs in the call under way."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode).__name__ == _SKIP_MODE for mode in modes)


def perturbation(transformer: nn.Module) -> str | None:
    """Say why a forward stays dense when a guider has put skip hooks on the transformer."""
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = (hook for registry in registries if registry for hook in _hooks(registry))
    return REASON if any(type(hook).__name__ in _SKIP_HOOKS for hook in hooks) else None


def _hooks(registry: Any) -> list[Any]:
    return list(registry.hooks.values())
