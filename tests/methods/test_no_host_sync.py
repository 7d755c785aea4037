"""Planning never waits for the device: every method, every option that takes another path.

On the CPU a dispatch mode refuses the operations that would wait; on a GPU torch itself does, and
there the permutation and the kernel are covered too.
"""

from dataclasses import replace

import pytest
import torch

from vidsparse.attention import attend_permuted, restore_output, run_plan
from vidsparse.layout import VideoLayout
from vidsparse.methods import finite_check
from vidsparse.methods.base import SparseMethod, available_methods, build_method
from vidsparse.methods.lite_thresholds import CRITERIA
from vidsparse.profiling.synthetic import video_qkv

LAYOUTS = {
    "video": VideoLayout(8, 12, 16),
    "text before": VideoLayout(9, 11, 13, text_before=30),
    "text after": VideoLayout(9, 11, 13, text_after=30),
}
SVG = {"density": 0.7}
DRAFT = {"density": 0.5}
SVG2 = {"density": 0.4, "first_iterations": 3, "q_clusters": 20, "k_clusters": 30}
ADASPA = {"density": 0.6, "search_at": (6, 8, 10), "stale_factor": 1.01}
CASES = [
    ("svg", SVG),
    ("svg", {**SVG, "decide_every": 3}),
    ("svg", {**SVG, "decide_every": 0}),
    ("svg", {**SVG, "heads": "spatial"}),
    ("svg", {**SVG, "heads": "temporal"}),
    ("svg", {**SVG, "sink": "positions"}),
    ("svg", {**SVG, "sink": "none"}),
    *(("draft", {**DRAFT, "budget": b}) for b in ("flat", "shared", "row", "top_p", "threshold")),
    ("draft", {**DRAFT, "tiling": "windows"}),
    ("draft", {**DRAFT, "tiling": "strips", "frames": 2}),
    ("draft", {**DRAFT, "window": (4, 5), "second_moment": True}),
    ("draft", {**DRAFT, "first_frame": True}),
    ("svg2", SVG2),
    ("svg2", {**SVG2, "heads": "equal"}),
    ("svg2", {**SVG2, "top_p": 0.9}),
    ("svg2", {**SVG2, "top_p": 0.5, "min_ratio": 0.1}),
    ("svg2", {**SVG2, "refresh_every": 2}),
    ("svg2", {**SVG2, "share_branches": True}),
    ("svg2", {"density": 0.4}),
    ("random", {"density": 0.6}),
    *(("compensated", {**DRAFT, "budget": b}) for b in ("flat", "row", "top_p")),
    ("compensated", {**DRAFT, "anchor_every": 2}),
    ("compensated", {**DRAFT, "plan_every": 2}),
    ("compensated", {**DRAFT, "tangents": False, "rank": "mass"}),
    ("adaspa", ADASPA),
    ("adaspa", {**ADASPA, "order": "compact", "frames": 2, "heads": "shared"}),
    *(("lite", {"density": 0.7, "criterion": c}) for c in CRITERIA),
    ("lite", {"threshold": 0.4, "order": "compact", "refresh_every": 2}),
    ("lite", {"criterion": "running_max", "threshold": -2.0}),
    ("lite", {"density": 0.5, "seed": "draft", "seed_density": 0.6}),
    ("lite", {"threshold": 0.4, "seed": "adaspa", "seed_density": 0.6}),
]
# Controls that look at the whole map or at nothing.
NOT_PLANNING = {"dense", "oracle", "oracle-error"}


def test_every_method_is_covered():
    covered = {name for name, _ in CASES} | NOT_PLANNING
    assert set(available_methods()) <= covered


def sites(cases):
    """A first call, then the steps that take the warm, the reused and the refreshed path."""
    return [cases.site(step=step, branch=branch) for step in (5, 6, 7, 8) for branch in (0, 1)]


class Pending:
    """A GPU's answer about NaN that is not in yet."""

    def query(self):
        return False


@pytest.fixture
def answers_later(monkeypatch):
    # On the CPU the answer is there at once and is read: that is no wait.
    start = finite_check.FiniteCheck.start
    monkeypatch.setattr(
        finite_check.FiniteCheck,
        "start",
        staticmethod(lambda site, *tensors: replace(start(site, *tensors), ready=Pending())),
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_plans_on_the_cpu_ask_for_no_value(name, options, layout, cases, answers_later):
    method = build_method(name, options)
    q, k, v = video_qkv(layout, 1, 2, 16, torch.device("cpu"), torch.float32)
    states = {key: method.init_state() for key in {method.state_key(s) for s in sites(cases)}}
    # Geometry is built on the host once per layout: when a call is planned, by methods that learn
    # from outputs also when they first do.
    first, *later = sites(cases)
    if type(method).observe is not SparseMethod.observe:
        spare = method.init_state()
        for site in (s for s in sites(cases) if method.state_key(s) == method.state_key(first)):
            plan = method.decide(q, k, v, layout, site, spare)
            method.observe(attend_permuted(q, k, v, plan), plan, site, spare)
    method.decide(q, k, v, layout, first, states[method.state_key(first)])
    for site in later:
        state = states[method.state_key(site)]
        with cases.no_host_sync():
            plan = method.decide(q, k, v, layout, site, state)
            plan.density()
        if type(method).observe is SparseMethod.observe and site is not later[-1]:
            continue  # nothing to learn from the output
        output = attend_permuted(q, k, v, plan)
        with cases.no_host_sync():
            method.observe(output, plan, site, state)


def test_a_wait_is_found(cases):
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero()):
        with cases.no_host_sync(), pytest.raises(AssertionError, match=r"waits|by a bool"):
            wait()


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_call_on_a_gpu_never_waits(name, options, layout, cases):
    method = build_method(name, options)
    # Blocks of the GPU's kernels are larger: more frames, so that densities can be met.
    layout = replace(layout, frames=24)
    q, k, v = video_qkv(layout, 1, 4, 64, torch.device("cuda"), torch.bfloat16)
    states = {key: method.init_state() for key in {method.state_key(s) for s in sites(cases)}}
    for site in sites(cases):  # compiles every path
        plan = method.decide(q, k, v, layout, site, states[method.state_key(site)])
        output = attend_permuted(q, k, v, plan)
        method.observe(output, plan, site, states[method.state_key(site)])
        run_plan(q, k, v, plan)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Later steps, then two of a run that began anew.
        for step in (9, 10, 11, 12, 1, 2):
            site = cases.site(step=step)
            plan = method.decide(q, k, v, layout, site, states[method.state_key(site)])
            output = attend_permuted(q, k, v, plan)
            method.observe(output, plan, site, states[method.state_key(site)])
            restore_output(output, plan)
            # Plans with heads that stay take another path here.
            run_plan(q, k, v, plan)
            plan.density()
    finally:
        torch.cuda.set_sync_debug_mode("default")
