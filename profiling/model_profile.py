"""Profile a model in one dense generation: where its time goes, and what sparsity could take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from vidsparse.errors import UsageError
from vidsparse.generate import OnStep, Sampling, warm_up
from vidsparse.layout import VideoLayout
from vidsparse.profiling.amdahl import ceilings
from vidsparse.profiling.break_even import BreakEven, break_even
from vidsparse.profiling.dense_run import LOOK_AT, ObservedAttention, observe
from vidsparse.profiling.layout_curves import (
    DENSITIES,
    Curve,
    HeadKinds,
    LayoutCurves,
    mean_curves,
)

# Methods whose break-even is timed: the cheapest plan, and the two costlier kinds.
BREAK_EVEN_METHODS = ("svg", "draft", "svg2")


@dataclass(frozen=True)
class ModelProfile:
    """What one dense generation showed.

    Attributes:
        attention_share: of the time in the transformer's forwards, in [0, 1].
        forward_seconds: mean time of a forward that nobody looked at.
        attention_calls: in the whole generation.
        layout: of the tokens.
        heads: H.
        head_dim: D.
        curves: recall by order, layer and noise level.
        temporal: (layer, step, share of heads SVG finds temporal).
        break_evens: per method.
        skipped: what does not work on this model, and why.
    """

    attention_share: float
    forward_seconds: float
    attention_calls: int
    layout: VideoLayout
    heads: int
    head_dim: int
    curves: tuple[Curve, ...]
    temporal: tuple[tuple[int, int, float], ...]
    break_evens: tuple[BreakEven, ...]
    skipped: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "attention_share": round(self.attention_share, 4),
            "forward_seconds": self.forward_seconds,
            "attention_calls": self.attention_calls,
            "tokens": self.layout.num_tokens,
            "grid": list(self.layout.grid),
            "heads": self.heads,
            "head_dim": self.head_dim,
            "ceilings": ceilings(self.attention_share),
            "densities": list(DENSITIES),
            "recall": {
                name: [round(value, 4) for value in row]
                for name, row in mean_curves(list(self.curves)).items()
            },
            "curves": [_curve_row(curve) for curve in self.curves],
            "temporal_heads": [
                {"layer": layer, "step": step, "share": round(share, 4)}
                for layer, step, share in self.temporal
            ],
            "break_even": [asdict(each) for each in self.break_evens],
            "skipped": self.skipped,
        }

    def lines(self) -> list[str]:
        """Return the result for people."""
        rows = [
            f"attention: {self.attention_share:.0%} of the transformer's time, "
            f"{self.layout.num_tokens} tokens, {self.heads} heads of size {self.head_dim}",
            "speed-up at most, by density and dense steps:",
            *_ceiling_table(self.attention_share),
            "attention mass in the best blocks, by density:",
            *_recall_table(mean_curves(list(self.curves))),
        ]
        if self.temporal:
            share = fmean(each[2] for each in self.temporal)
            rows.append(f"heads: {share:.0%} temporal, the others spatial")
        rows += [each.line() for each in self.break_evens]
        rows += [f"skipped {name}: {why}" for name, why in self.skipped.items()]
        return rows


def profile_model(
    pipe: Any,
    prompt: str,
    sampling: Sampling,
    *,
    seed: int = 0,
    methods: Sequence[str] = BREAK_EVEN_METHODS,
    on_step: OnStep | None = None,
) -> ModelProfile:
    """Profile a pipeline; memory stays bounded, no map is kept.

    Args:
        pipe: a diffusers text-to-video pipeline with nothing attached.
        prompt: what the video shows.
        sampling: options.
        seed: of the initial noise.
        methods: whose break-even is timed.
        on_step: called after each step.

    Raises:
        UsageError: the generation has too few steps to time some and look at others.
    """
    warm_up(pipe, prompt, sampling, steps=1)
    curves, heads = LayoutCurves(), HeadKinds()
    attention = ObservedAttention((curves, heads), LOOK_AT)
    observe(pipe, attention, prompt, sampling, seed=seed, on_step=on_step)
    if not len(attention.forwards) or attention.layout is None:
        raise UsageError(
            f"a profile times steps that it does not look at; use more than {len(LOOK_AT)} steps"
        )
    skipped = dict(curves.skipped)
    if heads.skipped is not None:
        skipped["head types"] = heads.skipped
    forwards = attention.forwards.seconds()
    device = torch.device(pipe.device)
    timed = _break_evens(methods, attention, device, skipped)
    return ModelProfile(
        attention_share=attention.attention.seconds() / forwards,
        forward_seconds=forwards / len(attention.forwards),
        attention_calls=attention.calls,
        layout=attention.layout,
        heads=attention.heads,
        head_dim=attention.head_dim,
        curves=tuple(curves.curves),
        temporal=tuple((layer, step, float(t.float().mean())) for layer, step, t in heads.temporal),
        break_evens=timed,
        skipped=skipped,
    )


def _break_evens(
    methods: Sequence[str],
    attention: ObservedAttention,
    device: torch.device,
    skipped: dict[str, str],
) -> tuple[BreakEven, ...]:
    found: list[BreakEven] = []
    for name in methods:
        try:
            found.append(
                break_even(
                    name,
                    attention.layout or VideoLayout(1, 1, 1),
                    heads=attention.heads,
                    head_dim=attention.head_dim,
                    dtype=attention.dtype,
                    device=device,
                )
            )
        except UsageError as error:
            skipped[f"break-even of {name}"] = str(error)
    return tuple(found)


def _curve_row(curve: Curve) -> dict[str, Any]:
    return {
        "order": curve.order,
        "layer": curve.layer,
        "step": curve.step,
        "sigma": curve.sigma,
        "recall": [[round(value, 4) for value in row] for row in curve.recall.tolist()],
    }


def _ceiling_table(share: float) -> list[str]:
    rows = ceilings(share)
    warm_ups = sorted({row["dense_steps"] for row in rows})
    lines = ["  density  " + "  ".join(f"{w:>4.0%} dense" for w in warm_ups)]
    for density in sorted({row["density"] for row in rows}):
        found = [
            r["speedup"]
            for w in warm_ups
            for r in rows
            if r["density"] == density and r["dense_steps"] == w
        ]
        lines.append(f"  {density:>7.2f}  " + "  ".join(f"{value:>9.2f}x" for value in found))
    return lines


def _recall_table(curves: dict[str, list[float]]) -> list[str]:
    lines = [f"  {'':<12}" + "  ".join(f"{density:>5.2f}" for density in DENSITIES)]
    for name, row in curves.items():
        lines.append(f"  {name:<12}" + "  ".join(f"{value:>5.3f}" for value in row))
    return lines
