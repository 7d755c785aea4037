import pytest
import torch

import vidsparse
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.pipelines import testing
from vidsparse.pipelines.step_cache import EXCLUDED, KINDS, _transformers, enable_step_cache
from vidsparse.pipelines.testing_more import allegro

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


@pytest.mark.parametrize(
    ("make", "cache"),
    [
        (testing.ltx_video, "first_block"),
        (testing.ltx_video, "taylorseer"),
        (testing.ltx_video, "pab"),
        (testing.cogvideox, "pab"),
        (testing.mochi, "pab"),
        (allegro, "pab"),
    ],
)
def test_caches_run_where_guidance_is_one_batch(make, cache):
    tiny, forwards = make(), []
    hook = tiny.pipe.transformer.register_forward_hook(lambda *_: forwards.append(None))
    plain = tiny.latents(steps=STEPS)
    hook.remove()
    assert len(forwards) == STEPS
    with vidsparse.enabled(tiny.pipe, "dense"):
        switch_off = enable_step_cache(tiny.pipe, cache, KINDS[cache].ladder[-1])
        cached = tiny.latents(steps=STEPS)
        switch_off()
    assert torch.isfinite(cached).all()
    assert torch.equal(tiny.latents(steps=STEPS), plain)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("first_blok", {}, r"unknown step cache 'first_blok'; did you mean 'first_block'\?"),
        ("first_block", {"treshold": 1}, r"no parameter 'treshold'; did you mean 'threshold'\?"),
        ("taylorseer", {"taylor_factors_dtype": "float31"}, "'float31' is no dtype; use float32"),
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


def test_disable_without_the_handle_takes_the_cache_off(wan):
    with_cache = config({"name": "first_block", "parameters": {}})
    vidsparse.enable(wan.pipe, config=with_cache)
    vidsparse.disable(wan.pipe)
    assert not wan.pipe.transformer.is_cache_enabled
    with vidsparse.enabled(wan.pipe, config=with_cache):
        assert wan.pipe.transformer.is_cache_enabled
    assert not wan.pipe.transformer.is_cache_enabled


def test_one_transformer_under_two_names_gets_one_cache(wan):
    wan.pipe.transformer_2 = wan.pipe.transformer
    assert len(_transformers(wan.pipe)) == 1


def test_an_interrupt_while_enabling_leaves_nothing_on(monkeypatch):
    pipe = testing.wan(experts=2).pipe
    before = [dict(each.attn_processors) for each in (pipe.transformer, pipe.transformer_2)]

    def interrupt(cache):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.transformer_2, "enable_cache", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vidsparse.enable(pipe, config=config({"name": "first_block", "parameters": {}}))
    assert not pipe.transformer.is_cache_enabled
    assert [each.attn_processors for each in (pipe.transformer, pipe.transformer_2)] == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: testing.wan().pipe, "both branches of the guidance in one batch.*WanTransformer"),
        (testing.wan_transformer, "WanTransformer3DModel does not tell; give the pipeline itself"),
        (testing.ltx_transformer, "LTXVideoTransformer3DModel does not tell; give the pipeline"),
    ],
)
def test_pab_is_refused_where_it_would_mix_up_branches_or_steps(make, message):
    target = make()
    with pytest.raises(UsageError, match=f"{message}.* use 'first_block' or 'taylorseer'"):
        vidsparse.enable(target, config=config({"name": "pab", "parameters": {}}))
    with vidsparse.enabled(target):
        pass


@pytest.mark.parametrize(
    ("parameters", "dtype"),
    [
        ({}, torch.float32),
        ({"taylor_factors_dtype": "bfloat16"}, torch.bfloat16),
        ({"taylor_factors_dtype": torch.float64}, torch.float64),
    ],
)
def test_factors_have_the_dtype_that_was_asked_for_else_float32(wan, parameters, dtype):
    switch_off = enable_step_cache(wan.pipe, "taylorseer", parameters)
    assert wan.pipe.transformer._cache_config.taylor_factors_dtype == dtype
    switch_off()


def test_an_error_without_a_message_is_told_by_its_type(wan, monkeypatch):
    def refuse(cache):
        raise ValueError

    monkeypatch.setattr(wan.pipe.transformer, "enable_cache", refuse)
    with pytest.raises(UsageError, match="not work on WanTransformer3DModel: ValueError"):
        enable_step_cache(wan.pipe, "first_block", {})


def test_a_model_without_caches_says_so():
    with pytest.raises(UsageError, match="has no step caches"):
        enable_step_cache(
            type("P", (), {"transformer": torch.nn.Linear(1, 1)})(), "first_block", {}
        )
