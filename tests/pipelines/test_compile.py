"""Attached transformers under torch.compile; the eager backend traces without generating code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from vidsparse.pipelines import testing, testing_hunyuan
from vidsparse.pipelines.attach import attach


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        yield
    torch.compiler.reset()


def run(transformer: Any, time: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out: torch.Tensor = transformer(
            hidden_states=torch.randn(1, 16, 3, 4, 4, generator=generator),
            timestep=torch.tensor([time]),
            encoder_hidden_states=torch.randn(1, 16, 32, generator=generator),
        ).sample
    return out


def test_repeated_blocks_are_one_graph_for_all_layers_and_steps(spy: Any) -> None:
    transformer = testing.wan_transformer(layers=12)
    times = (900.0, 700.0, 500.0, 300.0)
    expected = [run(transformer, time) for time in times]
    attachment = attach(transformer, spy)
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for time, dense in zip(times, expected, strict=True):
        assert torch.equal(run(transformer, time), dense)
    attachment.detach()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert [(s.step, s.layer) for s in spy.sites] == [(s, i) for s in range(4) for i in range(12)]


def test_replaced_processor_body_is_one_graph_too(spy: Any) -> None:
    tiny = testing_hunyuan.hunyuan_video15()
    expected = tiny.latents(steps=1)
    attachment = attach(tiny.pipe, spy)
    tiny.pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    # Two prompts of one length, and the text refiner's block, which is compiled too.
    with torch._dynamo.config.patch(recompile_limit=4):
        found = tiny.latents(steps=1)
    attachment.detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert not counters["graph_break"]
    assert [(s.branch, s.layer) for s in spy.sites] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_enabling_after_compilation_works_too(spy: Any) -> None:
    transformer = testing.wan_transformer(layers=3)
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2):
        expected = run(transformer, 900.0)
        attachment = attach(transformer, spy)
        assert torch.equal(run(transformer, 900.0), expected)
        assert [s.layer for s in spy.sites] == [0, 1, 2]
        attachment.detach()
        assert torch.equal(run(transformer, 900.0), expected)
    assert len(spy.sites) == 3


def test_whole_compiled_model_is_followed_from_outside(spy: Any) -> None:
    transformer = testing.wan_transformer(layers=3)
    expected = run(transformer, 900.0)
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    attachment = attach(compiled, spy)
    for time in (900.0, 700.0, 500.0):
        out = run(compiled, time)
        assert time != 900.0 or torch.equal(out, expected)
    attachment.detach()
    assert [(s.step, s.layer) for s in spy.sites] == [(s, i) for s in range(3) for i in range(3)]
    assert counters["stats"]["unique_graphs"] == 1


def test_model_compiled_in_place_keeps_its_steps(spy: Any) -> None:
    transformer = testing.wan_transformer(layers=3)
    expected = run(transformer, 900.0)
    attachment = attach(transformer, spy)
    with torch._dynamo.config.patch(recompile_limit=8):
        transformer.compile(backend="eager")
        assert torch.equal(run(transformer, 900.0), expected)
        graphs = counters["stats"]["unique_graphs"]
        for time in range(800, 0, -100):
            run(transformer, float(time))
    attachment.detach()
    assert [(s.step, s.layer) for s in spy.sites] == [(s, i) for s in range(9) for i in range(3)]
    assert counters["stats"]["unique_graphs"] == graphs


def test_fake_op_has_the_shape_of_the_real_one(spy: Any) -> None:
    from vidsparse.pipelines.processors import attention_op

    transformer = testing.wan_transformer(layers=1)
    attachment = attach(transformer, spy)
    run(transformer, 900.0)
    processor = transformer.blocks[0].attn1.processor
    processor.vidsparse_layer.transformer.layout = spy.layouts[0]
    q, k, v = torch.randn(3, 1, 12, 2, 12).unbind()
    torch.library.opcheck(
        attention_op,
        (q, k, v, None, processor.vidsparse_handle),
        test_utils=("test_schema", "test_faketensor"),
    )
    attachment.detach()
