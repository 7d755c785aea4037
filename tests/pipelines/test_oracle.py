"""Sparse calls of at least 2000 tokens in each form of attention, against a dense token mask."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsparse
from vidsparse.attention import restore_output
from vidsparse.layout import VideoLayout
from vidsparse.methods.svg import SVG
from vidsparse.pipelines import testing, testing_hunyuan, testing_more
from vidsparse.pipelines.testing import TinyPipeline

LARGE = {"height": 256, "width": 256, "num_frames": 33}
PACKED = {"height": 64, "width": 64, "num_frames": 33}
FORMS: dict[str, tuple[Callable[[], TinyPipeline], dict[str, int], int, int]] = {
    "self-attention": (testing.wan, LARGE, 0, 0),
    "text before": (testing.cogvideox, LARGE, 16, 0),
    "text after, padded": (testing.hunyuan_video, LARGE, 0, 13),
    "text after, no mask": (
        testing_hunyuan.hunyuan_video15,
        {"height": 384, "width": 384, "num_frames": 17},
        0,
        13,
    ),
    "row by row": (testing.mochi, {**LARGE, "num_frames": 49}, 0, 14),
    "packed": (testing.ltx_video, PACKED, 0, 0),
    "packed behind conditions": (
        partial(testing.ltx_video, conditions=True),
        PACKED,
        256,
        0,
    ),
    # Two frames of 20 x 20, one of 10 x 10, one of 5 x 5.
    "history before": (testing_more.helios, {"height": 320, "width": 320}, 925, 0),
}


def oracle(q: Tensor, k: Tensor, v: Tensor, plan: Any, b: int, h: int) -> tuple[Tensor, Tensor]:
    """Attend to one head's kept tokens in their natural order, in float64 and in float32.

    Returns:
        (S, D) each, in the natural order.
    """
    B, H, S, _ = q.shape
    keep = plan.mask.token_mask().expand(B, H, S, S)[b, h]
    natural = torch.arange(S).expand(B, H, S)
    rows = (natural if plan.q_order is None else plan.q_order.long().expand(B, H, S))[b, h]
    columns = (natural if plan.kv_order is None else plan.kv_order.long().expand(B, H, S))[b, h]
    mask = torch.empty_like(keep)
    mask[rows[:, None], columns] = keep
    head = [x[b : b + 1, h : h + 1] for x in (q, k, v)]
    attend = partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask)
    exact, eager = attend(*(x.double() for x in head)), attend(*head)
    return exact[0, 0], eager[0, 0]


@dataclass(frozen=True)
class CheckedSVG(SVG):
    """SVG that compares a head of every call with the oracle's; ``seen`` has one entry each."""

    seen: list[tuple[float, VideoLayout]] = field(default_factory=list)
    _calls: list[Any] = field(default_factory=list)

    def plan(self, q: Tensor, k: Tensor, v: Tensor, layout: Any, site: Any, state: Any) -> Any:
        plan = super().plan(q, k, v, layout, site, state)
        self._calls.append((q, k, v, layout))
        return plan

    def observe(self, output: Any, plan: Any, site: Any, state: Any) -> None:
        q, k, v, layout = self._calls.pop()
        b, h = len(self.seen) % q.shape[0], len(self.seen) % q.shape[1]
        exact, eager = oracle(q, k, v, plan, b, h)
        # Kernels that follow orders themselves put tokens back as well.
        natural = output if plan.moved(k, v) is not None else restore_output(output, plan)
        error, unavoidable = ((x - exact).abs().max() for x in (natural.out[b, h], eager))
        self.seen.append((float(error / unavoidable), layout))
        super().observe(output, plan, site, state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_sparse_calls_equal_the_oracle(form: str) -> None:
    build, changes, before, after = FORMS[form]
    tiny = build()
    method = CheckedSVG(density=0.9 if before > 900 else 0.5)
    with vidsparse.enabled(tiny.pipe, method, dense_steps=0) as handle:
        tiny.latents(changes=changes)
    summary = handle.summary()
    assert summary.sparse_calls == len(method.seen) >= 4
    assert not summary.dense_calls
    assert summary.density is not None
    assert summary.density < 0.95
    layouts = {layout for _, layout in method.seen}
    assert (before, after) in {(layout.text_before, layout.text_after) for layout in layouts}
    assert min(layout.num_tokens for layout in layouts) >= 2000
    # Errors over those of torch's own float32 attention under the same mask.
    assert max(error for error, _ in method.seen) < 2
