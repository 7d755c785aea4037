"""Attaching and detaching, on tiny Wan pipelines."""

import copy
import gc
import threading
import weakref
from typing import Any

import accelerate
import diffusers
import pytest
import torch

from vidsparse.errors import AlreadyEnabledError, UnsupportedPipelineError, UsageError
from vidsparse.pipelines import testing
from vidsparse.pipelines.attach import attach, attachments_of
from vidsparse.pipelines.processors import attach_processor
from vidsparse.pipelines.testing import TinyPipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def processors(pipe: Any) -> list[Any]:
    return [block.attn1.processor for block in pipe.transformer.blocks]


def test_detach_restores_exact_objects_and_removes_hooks(wan: TinyPipeline, spy: Any) -> None:
    transformer = wan.pipe.transformer
    before = processors(wan.pipe)
    hooks = len(transformer._forward_pre_hooks), len(transformer._forward_hooks)
    expected = wan.latents()
    attachment = attach(wan.pipe, spy)
    assert not any(a is b for a, b in zip(before, processors(wan.pipe), strict=True))
    for _ in range(2):
        attachment.detach()
        assert all(a is b for a, b in zip(before, processors(wan.pipe), strict=True))
        assert (len(transformer._forward_pre_hooks), len(transformer._forward_hooks)) == hooks
    assert torch.equal(wan.latents(), expected)
    assert not spy.sites


def test_cross_attention_is_left_alone(wan: TinyPipeline, spy: Any) -> None:
    before = [block.attn2.processor for block in wan.pipe.transformer.blocks]
    attachment = attach(wan.pipe, spy)
    now = [block.attn2.processor for block in wan.pipe.transformer.blocks]
    assert all(a is b for a, b in zip(before, now, strict=True))
    attachment.detach()


def test_guidance_calls_are_branches_and_steps_are_counted(wan: TinyPipeline, spy: Any) -> None:
    attachment = attach(wan.pipe, spy)
    wan.latents(steps=3)
    wan.latents(steps=2, changes={"guidance_scale": 1.0})
    attachment.detach()
    guided = [(0, step, branch) for step in range(3) for branch in range(2)]
    assert spy.places == [*guided, (1, 0, 0), (1, 1, 0)]
    assert [s.num_steps for s in spy.sites if s.layer == 0] == [3] * 6 + [2] * 2
    assert [s.layer for s in spy.sites] == [0, 1] * 8
    assert {s.num_layers for s in spy.sites} == {2}


def test_sigma_is_the_scheduler_time_over_1000(wan: TinyPipeline, spy: Any) -> None:
    attachment = attach(wan.pipe, spy)
    wan.latents(steps=3)
    attachment.detach()
    expected = [float(t) / 1000 for t in wan.pipe.scheduler.timesteps for _ in range(4)]
    assert [s.sigma for s in spy.sites] == pytest.approx(expected)


def test_interrupted_run_then_clean_run(wan: TinyPipeline, spy: Any) -> None:
    expected = wan.latents(steps=3)
    attachment = attach(wan.pipe, spy)
    spy.fail_at = 6
    with pytest.raises(RuntimeError, match="on purpose"):
        wan.latents(steps=3)
    spy.fail_at = None
    spy.sites.clear()
    assert torch.equal(wan.latents(steps=3), expected)
    attachment.detach()
    assert spy.places == [(1, step, branch) for step in range(3) for branch in range(2)]


def test_changed_resolution_resets_and_changes_the_layout(wan: TinyPipeline, spy: Any) -> None:
    attachment = attach(wan.pipe, spy)
    wan.latents()
    resets = spy.resets
    wan.latents(changes={"height": 48})
    attachment.detach()
    assert {layout.grid for layout in spy.layouts} == {(3, 2, 2), (3, 3, 2)}
    assert spy.resets > resets
    assert spy.places[4:] == [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]


def test_several_videos_per_prompt_are_rows(wan: TinyPipeline, spy: Any) -> None:
    attachment = attach(wan.pipe, spy)
    wan.latents(changes={"num_videos_per_prompt": 2})
    attachment.detach()
    assert {shape[0] for shape in spy.shapes} == {2}
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]


def test_two_pipelines_share_nothing(wan: TinyPipeline, spy: Any) -> None:
    other, other_spy = testing.wan(layers=1), type(spy)()
    first, second = attach(wan.pipe, spy), attach(other.pipe, other_spy)
    wan.latents(steps=3)
    other.latents(steps=1)
    assert len(spy.sites) == 3 * 2 * 2
    assert other_spy.places == [(0, 0, 0), (0, 0, 1)]
    first.detach()
    other.latents(steps=1)
    assert len(spy.sites) == 3 * 2 * 2
    assert len(other_spy.places) == 4
    second.detach()


def test_second_pipeline_on_the_same_components_has_its_own_steps(spy: Any) -> None:
    first = testing.wan(layers=1)
    second = TinyPipeline(diffusers.WanPipeline(**first.pipe.components), first.inputs)
    attachment = attach(first.pipe, spy)
    first.latents(steps=4)
    second.latents(steps=2)

    def stop(*args: Any) -> Any:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        first.latents(steps=4, changes={"callback_on_step_end": stop})
    second.latents(steps=3)
    dropped = weakref.ref(first.pipe)
    del first
    gc.collect()
    assert dropped() is None
    second.latents(steps=5)
    attachment.detach()
    steps = {(s.generation, s.num_steps) for s in spy.sites}
    assert steps == {(0, 4), (1, 2), (2, 4), (3, 3), (4, 5)}


def test_two_pipelines_in_two_threads_share_nothing(spy: Any) -> None:
    pipelines = [testing.wan(layers=4), testing.wan(layers=4)]
    spies = [type(spy)() for _ in pipelines]
    attachments = [attach(each.pipe, own) for each, own in zip(pipelines, spies, strict=True)]
    threads = [threading.Thread(target=each.latents, kwargs={"steps": 8}) for each in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for attachment, own in zip(attachments, spies, strict=True):
        attachment.detach()
        assert [s.layer for s in own.sites] == [0, 1, 2, 3] * 16
        assert own.places == [(0, step, branch) for step in range(8) for branch in range(2)]


def test_transformer_with_both_names_is_attached_once(spy: Any) -> None:
    tiny = testing.wan(layers=1, experts=2)
    tiny.pipe.transformer_2 = tiny.pipe.transformer
    attachment = attach(tiny.pipe, spy)
    tiny.latents(steps=3)
    attachment.detach()
    assert spy.places == [(0, step, branch) for step in range(3) for branch in range(2)]
    assert not tiny.pipe.transformer._forward_pre_hooks


def test_attaching_twice_says_what_to_do(wan: TinyPipeline, spy: Any) -> None:
    attachment = attach(wan.pipe, spy)
    with pytest.raises(AlreadyEnabledError, match="WanPipeline; call disable"):
        attach(wan.pipe, spy)
    with pytest.raises(AlreadyEnabledError, match="WanTransformer3DModel"):
        attach(wan.pipe.transformer, spy)
    attachment.detach()
    assert attachments_of(wan.pipe) == []
    attach(wan.pipe, spy).detach()


def test_unsupported_objects_are_named_with_the_supported_ones(spy: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"Linear is not supported; .*WanTransf"):
        attach(torch.nn.Linear(2, 2), spy)
    with pytest.raises(UnsupportedPipelineError, match=r"dict has no video transf.*WanPipeline"):
        attach({}, spy)


def test_foreign_processor_is_refused_and_nothing_stays_attached(spy: Any) -> None:
    class Foreign:
        def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    transformer = testing.wan_transformer()
    transformer.blocks[1].attn1.processor = foreign = Foreign()
    first = transformer.blocks[0].attn1.processor
    with pytest.raises(UnsupportedPipelineError, match="Foreign calls neither"):
        attach(transformer, spy)
    assert transformer.blocks[0].attn1.processor is first
    assert transformer.blocks[1].attn1.processor is foreign
    assert not transformer._forward_pre_hooks


def test_an_interrupt_while_attaching_leaves_nothing_attached(
    wan: TinyPipeline, spy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processors(wan.pipe)
    made: list[Any] = []

    def once(*args: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(attach_processor(*args))
        return made[0]

    monkeypatch.setattr("vidsparse.pipelines.attach.attach_processor", once)
    with pytest.raises(KeyboardInterrupt):
        attach(wan.pipe, spy)
    assert all(a is b for a, b in zip(before, processors(wan.pipe), strict=True))
    assert not wan.pipe.transformer._forward_pre_hooks


def test_replaced_processor_is_noticed(spy: Any) -> None:
    tiny = testing.wan()
    attachment = attach(tiny.pipe, spy)
    attention = tiny.pipe.transformer.blocks[0].attn1
    attention.processor = own = type(attention.processor.vidsparse_original)()
    with pytest.raises(UsageError, match="were replaced after sparse attention was enabled"):
        tiny.latents()
    attachment.detach()
    assert attention.processor is own
    tiny.latents()


def test_replaced_processors_are_detached_without_a_handle(spy: Any) -> None:
    tiny = testing.wan(layers=1)
    attachment = attach(tiny.pipe, spy)
    attention = tiny.pipe.transformer.blocks[0].attn1
    attention.processor = own = type(attention.processor.vidsparse_original)()
    with pytest.raises(AlreadyEnabledError):
        attach(tiny.pipe, spy)
    assert attachments_of(tiny.pipe) == [attachment]
    attachment.detach()
    assert attention.processor is own
    assert not tiny.pipe.transformer._forward_pre_hooks
    tiny.latents()


def test_detach_leaves_the_processors_of_another_attachment(spy: Any) -> None:
    first, second = testing.wan_transformer(), testing.wan_transformer()
    attachment, other = attach(first, spy), attach(second, spy)
    mine = first.blocks[0].attn1
    mine.processor = second.blocks[0].attn1.processor
    with pytest.raises(UsageError, match="were replaced"):
        forward(first, 900.0)
    attachment.detach()
    assert mine.processor is second.blocks[0].attn1.processor
    other.detach()


def test_swapped_transformer_is_no_silent_loss(spy: Any) -> None:
    tiny, other = testing.wan(layers=1), testing.wan(layers=1).pipe.transformer
    attachment = attach(tiny.pipe, spy)
    assert attachment.misses() is None
    old, tiny.pipe.transformer = tiny.pipe.transformer, other
    assert "WanPipeline no longer holds" in str(attachment.misses())
    with pytest.raises(AlreadyEnabledError, match="no longer holds a transformer"):
        attach(tiny.pipe, spy)
    assert attachments_of(tiny.pipe) == attachments_of(old) == [attachment]
    attachment.detach()
    assert attachment.misses() is None
    assert not old._forward_pre_hooks
    attach(tiny.pipe, spy).detach()


def test_pipeline_whose_transformer_is_gone_can_be_attached_anew(spy: Any) -> None:
    tiny = testing.wan(layers=1)
    attachment = attach(tiny.pipe, spy)
    tiny.pipe.transformer = testing.wan(layers=1).pipe.transformer
    gc.collect()
    assert attachments_of(tiny.pipe) == []
    assert attachment.misses() is not None
    attach(tiny.pipe, spy).detach()


def test_chosen_backend_is_used_and_outlives_the_attachment(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    processor = transformer.blocks[0].attn1.processor
    processor._attention_backend = "no such backend"
    with pytest.raises(ValueError, match="no such backend"):
        forward(transformer, 900.0)
    attachment.detach()
    assert transformer.blocks[0].attn1.processor._attention_backend == "no such backend"


def test_context_parallel_is_refused(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    transformer.blocks[0].attn1.processor._parallel_config = object()
    with pytest.raises(UsageError, match="parallel_config"):
        forward(transformer, 900.0)
    attachment.detach()


def test_copy_of_an_attached_pipeline_is_not_attached(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    other = copy.deepcopy(transformer)
    assert attachments_of(other) == []
    attachment.detach()


def test_copy_of_an_attached_transformer_moves_no_step(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    other = copy.deepcopy(transformer)
    forward(transformer, 900.0)
    forward(other, 950.0)
    forward(transformer, 500.0)
    attachment.detach()
    forward(other, 950.0)
    assert spy.places == [(0, 0, 0), (0, 1, 0)]
    assert attachment.tracker.generation == 0


def test_dropping_the_pipeline_frees_it_at_once(spy: Any) -> None:
    transformer = testing.wan_transformer()
    gc.collect()
    gc.disable()
    try:
        attach(transformer, spy)
        gone = weakref.ref(transformer)
        del transformer
        assert gone() is None
    finally:
        gc.enable()


def test_layer_called_outside_its_transformer_is_an_error(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    forward(transformer, 900.0)
    with pytest.raises(UsageError, match=r"call the transformer itself, not its forward"):
        transformer.forward(**inputs(900.0))
    attachment.detach()


def test_bare_transformer_follows_a_hand_written_loop(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    for time in (900.0, 500.0, 900.0):
        forward(transformer, time)
        forward(transformer, time)
    attachment.detach()
    assert spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1)]
    assert {s.num_steps for s in spy.sites} == {None}
    assert {s.transformer for s in spy.sites} == {"transformer"}


def test_bare_transformer_after_a_failed_forward_starts_over(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    spy.fail_at = 1
    with pytest.raises(RuntimeError, match="on purpose"):
        forward(transformer, 900.0)
    spy.fail_at = None
    forward(transformer, 900.0)
    attachment.detach()
    assert spy.places == [(0, 0, 0), (1, 0, 0)]


def test_positional_arguments_are_understood(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attachment = attach(transformer, spy)
    with torch.no_grad():
        transformer(*inputs(900.0).values())
    attachment.detach()
    assert spy.layouts[0].grid == (3, 2, 2)
    assert spy.sites[0].sigma == 0.9


def test_attends_without_no_grad(spy: Any) -> None:
    transformer = testing.wan_transformer()
    expected = transformer(**inputs(900.0)).sample
    attachment = attach(transformer, spy)
    assert torch.equal(transformer(**inputs(900.0)).sample, expected)
    attachment.detach()


def test_mask_the_layout_does_not_explain_stays_dense_and_is_honoured(spy: Any) -> None:
    transformer = testing.wan_transformer()
    attention = transformer.blocks[0].attn1
    attachment = attach(transformer, spy)
    forward(transformer, 900.0)
    layer = attention.processor.vidsparse_layer
    layer.transformer.layout = spy.layouts[0]
    spy.sites.clear()
    q, k, v = torch.randn(3, 1, 12, 2, 12).unbind()
    mask = torch.rand(1, 1, 12, 12) > 0.3
    out = layer.attend(q, k, v, mask)
    attachment.detach()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    assert torch.equal(out, expected)
    assert not spy.sites
    assert dict(spy.recorder.dense) == {"attention mask": 1}


def test_hooks_outlive_an_offload_hook_that_is_installed_again(wan: TinyPipeline, spy: Any) -> None:
    transformer = wan.pipe.transformer
    expected = wan.latents()
    accelerate.hooks.add_hook_to_module(transformer, accelerate.hooks.ModelHook())
    attachment = attach(wan.pipe, spy)
    assert torch.equal(wan.latents(), expected)
    accelerate.hooks.remove_hook_from_module(transformer)
    accelerate.hooks.add_hook_to_module(transformer, accelerate.hooks.ModelHook())
    assert torch.equal(wan.latents(), expected)
    accelerate.hooks.remove_hook_from_module(transformer)
    attachment.detach()
    assert spy.places == [(g, s, b) for g in range(2) for s in range(2) for b in range(2)]


def test_steps_are_right_where_a_cache_skips_blocks(spy: Any) -> None:
    tiny = testing.wan(layers=4)
    # So loose a threshold that every step after the first is taken from the cache.
    tiny.pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=100.0))
    expected = tiny.latents(steps=4)
    attachment = attach(tiny.pipe, spy)
    assert torch.equal(tiny.latents(steps=4), expected)
    attachment.detach()
    layers = [(s.step, s.branch, s.layer) for s in spy.sites]
    first = [(0, branch, layer) for branch in range(2) for layer in range(4)]
    assert layers == first + [(step, branch, 0) for step in range(1, 4) for branch in range(2)]


def inputs(time: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 16, 3, 4, 4, generator=generator),
        "timestep": torch.tensor([time]),
        "encoder_hidden_states": torch.randn(1, 16, 32, generator=generator),
    }


def forward(transformer: Any, time: float) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = transformer(**inputs(time)).sample
    return out
