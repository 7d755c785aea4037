import pytest
import torch

import vidsparse
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.pipelines import testing
from vidsparse.pipelines.step_cache import EXCLUDED, KINDS, enable_step_cache

STEPS = 6
# 432 tokens: fewer would stay dense.
SIZE = {"height": 192, "width": 192}


@pytest.fixture(scope="module")
def wan():
    return testing.wan()


def config(cache, **settings):
    return SparseConfig(
        method="random", parameters={"density": 0.5}, dense_steps=0, cache=cache, **settings
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("first_block", {"threshold": 10.0}),
        ("taylorseer", {"cache_interval": 3, "disable_cache_before_step": 1}),
    ],
)
def test_cache_skips_calls_and_the_tracker_still_counts_steps(wan, name, parameters):
    plain = wan.latents(steps=STEPS, changes=SIZE)
    with vidsparse.enabled(
        wan.pipe, config=config({"name": name, "parameters": parameters}), record_sites=True
    ) as handle:
        first = wan.latents(steps=STEPS, changes=SIZE)
        sites = [site for site, _ in handle.recorder.rows]
        second = wan.latents(steps=STEPS, changes=SIZE)
        assert handle.recorder.sparse_calls == 2 * len(sites)
    # Two layers, two branches: without a cache there were 4 calls a step.
    assert len(sites) < 4 * STEPS
    assert max(site.step for site in sites) <= STEPS - 1
    assert {site.num_steps for site in sites} == {STEPS}
    assert any(site.step > 1 for site in sites)
    assert not torch.equal(first, plain)
    # Nothing of a generation is left in the next.
    assert torch.equal(first, second)
    assert torch.equal(wan.latents(steps=STEPS, changes=SIZE), plain)
    assert not wan.pipe.transformer.is_cache_enabled


def test_cache_without_sparsity_is_a_preset_too(wan):
    plain = wan.latents(steps=STEPS, changes=SIZE)
    alone = SparseConfig(
        method="dense", cache={"name": "first_block", "parameters": {"threshold": 0.0}}
    )
    with vidsparse.enabled(wan.pipe, config=alone):
        assert torch.equal(wan.latents(steps=STEPS, changes=SIZE), plain)


@pytest.mark.parametrize("cache", ["first_block", "taylorseer", "pab"])
def test_caches_run_where_guidance_is_one_batch(cache):
    ltx = testing.ltx_video()
    plain = ltx.latents(steps=STEPS)
    with vidsparse.enabled(ltx.pipe, "dense"):
        switch_off = enable_step_cache(ltx.pipe, cache, KINDS[cache].ladder[-1])
        cached = ltx.latents(steps=STEPS)
        switch_off()
    assert torch.isfinite(cached).all()
    assert torch.equal(ltx.latents(steps=STEPS), plain)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("first_blok", {}, r"unknown step cache 'first_blok'; did you mean 'first_block'\?"),
        ("first_block", {"treshold": 1}, r"no parameter 'treshold'; did you mean 'threshold'\?"),
        *[(name, {}, f"step cache '{name}' is not supported") for name in EXCLUDED],
    ],
)
def test_unknown_caches_are_refused_and_nothing_is_left(wan, name, parameters, message):
    with pytest.raises(UsageError, match=message):
        vidsparse.enable(wan.pipe, config=config({"name": name, "parameters": parameters}))
    with vidsparse.enabled(wan.pipe):
        pass


def test_a_second_cache_is_refused(wan):
    switch_off = enable_step_cache(wan.pipe, "first_block", {})
    with pytest.raises(UsageError, match="already on in WanTransformer3DModel"):
        enable_step_cache(wan.pipe, "taylorseer", {})
    switch_off()
    switch_off()
    assert not wan.pipe.transformer.is_cache_enabled


def test_a_model_without_caches_says_so():
    with pytest.raises(UsageError, match="has no step caches"):
        enable_step_cache(
            type("P", (), {"transformer": torch.nn.Linear(1, 1)})(), "first_block", {}
        )
