from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import vidsparse
from vidsparse.config import SparseConfig
from vidsparse.errors import AlreadyEnabledError, UnsupportedPipelineError, UsageError
from vidsparse.methods.base import SparseMethod
from vidsparse.pipelines import testing
from vidsparse.pipelines.testing import TinyPipeline

# 9 x 16 x 16 = 2304 tokens: enough blocks for a mask to matter.
LARGE = {"height": 256, "width": 256, "num_frames": 33}


@dataclass(frozen=True)
class Interrupting(SparseMethod):
    name = "interrupting"
    summary = "raises at a step"
    source = "none"

    at_step: int = 1

    def plan(self, q: Any, k: Any, v: Any, layout: Any, site: Any, state: Any) -> None:
        if site.step == self.at_step:
            raise RuntimeError("interrupted on purpose")


@pytest.fixture(scope="module")
def wan() -> TinyPipeline:
    return testing.wan(head_dim=16)


def run(tiny: TinyPipeline, seed: int = 0) -> torch.Tensor:
    return tiny.latents(seed=seed, changes=LARGE)


def test_density_one_is_bit_identical_in_pixels(wan: TinyPipeline) -> None:
    expected = wan.generate()
    with vidsparse.enabled(wan.pipe, density=1.0, dense_steps=0) as handle:
        assert torch.equal(wan.generate(), expected)
    assert handle.summary().dense_calls == {"density 1": 8}


def test_disable_gives_the_dense_output_back(wan: TinyPipeline) -> None:
    expected = run(wan)
    handle = vidsparse.enable(wan.pipe, "random", density=0.3, dense_steps=0)
    assert not torch.equal(run(wan), expected)
    handle.disable()
    handle.disable()
    assert torch.equal(run(wan), expected)


@pytest.mark.parametrize("method", ["svg", "random", "oracle"])
def test_second_run_with_the_same_seed_is_equal(wan: TinyPipeline, method: str) -> None:
    with vidsparse.enabled(wan.pipe, method, density=0.3, dense_steps=0):
        first = run(wan)
        run(wan, seed=1)
        assert torch.equal(run(wan), first)


def test_interrupted_run_then_clean_run_is_equal(wan: TinyPipeline) -> None:
    with vidsparse.enabled(wan.pipe, "svg", density=0.3, dense_steps=0):
        expected = run(wan)

        def interrupt(pipe: Any, step: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            wan.latents(steps=3, changes={**LARGE, "callback_on_step_end": interrupt})
        assert torch.equal(run(wan), expected)


def test_two_pipelines_at_once_keep_their_outputs_and_counts(wan: TinyPipeline) -> None:
    other = testing.wan(head_dim=16, layers=1)
    with vidsparse.enabled(wan.pipe, "svg", density=0.3, dense_steps=0):
        alone = run(wan)
    with (
        vidsparse.enabled(wan.pipe, "svg", density=0.3, dense_steps=0) as first,
        vidsparse.enabled(other.pipe, "random", density=0.5, dense_steps=0) as second,
    ):
        run(other)
        assert torch.equal(run(wan), alone)
        run(other)
    assert first.summary().calls == 8
    assert second.summary().calls == 8
    assert first.summary().density != second.summary().density


def test_method_error_leaves_a_usable_pipeline(wan: TinyPipeline) -> None:
    expected = run(wan)
    with vidsparse.enabled(wan.pipe, Interrupting(), dense_steps=0) as handle:
        with pytest.raises(RuntimeError, match="on purpose"):
            run(wan)
        assert handle.summary().dense_calls == {"interrupting asked for it": 4}
    assert torch.equal(run(wan), expected)


def test_summary_counts_calls_densities_and_reasons(wan: TinyPipeline) -> None:
    with vidsparse.enabled(
        wan.pipe, "random", density=0.3, dense_steps=1, dense_layers=1, record_sites=True
    ) as handle:
        wan.latents(steps=4, changes=LARGE)
    summary = handle.summary()
    assert (summary.calls, summary.sparse_calls) == (16, 6)
    assert summary.dense_calls == {"dense steps": 4, "dense layers": 6}
    assert summary.density == pytest.approx(0.3, abs=0.03)
    assert summary.overall_density == pytest.approx((10 + 6 * summary.density) / 16)
    assert len(handle.recorder.rows) == 16
    assert summary.as_dict()["dense_calls"] == {"dense steps": 4, "dense layers": 6}
    lines = str(summary).splitlines()
    assert lines[0].split() == ["method", "random"]
    assert any(line.split() == ["dense", "steps", "4", "dense"] for line in lines)
    handle.reset_counts()
    assert handle.summary().calls == 0
    assert handle.summary().overall_density is None


def test_summary_reports_what_states_hold(wan: TinyPipeline) -> None:
    with vidsparse.enabled(wan.pipe, "adaspa", density=0.3, dense_steps=1) as handle:
        wan.latents(steps=4, changes=LARGE)
        held = handle.summary().state_bytes
        wan.latents(steps=4, changes=LARGE)
        assert handle.summary().state_bytes == held
    summary = handle.summary()
    # Two layers and branches, and what "disable" drops still counts.
    assert summary.dense_calls == {"dense steps": 8, "adaspa search": 8}
    assert summary.sparse_calls == 16
    assert summary.state_bytes == held > 0
    assert str(summary).splitlines()[-1].split() == ["state", f"{held / 2**20:.1f}", "MiB"]


def test_reset_counts_forgets_what_states_held_before(wan: TinyPipeline) -> None:
    with vidsparse.enabled(wan.pipe, "adaspa", density=0.3, dense_steps=1) as handle:
        wan.latents(steps=4, changes=LARGE)
        # Too small to be sparse: the states of the large video are dropped.
        wan.latents()
        assert handle.summary().state_bytes > 0
        handle.reset_counts()
        assert handle.summary().state_bytes == 0


def test_small_grids_stay_dense(wan: TinyPipeline) -> None:
    expected = wan.latents()
    with vidsparse.enabled(wan.pipe, "random", density=0.1, dense_steps=0) as handle:
        assert torch.equal(wan.latents(), expected)
    assert handle.summary().dense_calls == {"short sequence": 8}


def test_share_of_steps_is_of_the_whole_generation_over_two_experts() -> None:
    tiny = testing.wan(experts=2, head_dim=16)
    with vidsparse.enabled(tiny.pipe, "random", dense_steps=0.5, record_sites=True) as handle:
        tiny.latents(steps=4, changes=LARGE)
    sparse = {
        site.step for site, density in handle.recorder.rows if isinstance(density, torch.Tensor)
    }
    assert sparse == {2, 3}


def test_bare_transformer_needs_to_be_told_the_steps_for_a_share() -> None:
    transformer = testing.wan_transformer(head_dim=16)
    handle = vidsparse.enable(transformer, "random", density=0.3, dense_steps=0.5)
    with pytest.raises(UsageError, match=r"give num_steps= to handle.generation\(\)"):
        sample(transformer, [900.0])
    for _ in range(2):
        with handle.generation(num_steps=4):
            sample(transformer, [900.0, 700.0, 500.0, 300.0])
    assert handle.summary().dense_calls == {"dense steps": 2 * 2 * 2}
    assert handle.summary().sparse_calls == 2 * 2 * 2
    with pytest.raises(UsageError, match="num_steps=0 must be at least 1"):
        handle.generation(num_steps=0).__enter__()
    handle.disable()


def test_bare_transformer_with_counted_steps_needs_nothing() -> None:
    transformer = testing.wan_transformer(head_dim=16)
    with vidsparse.enabled(transformer, "random", density=0.3, dense_steps=1) as handle:
        first = sample(transformer, [900.0, 500.0])
        assert torch.equal(sample(transformer, [900.0, 500.0]), first)
    assert handle.summary().dense_calls == {"dense steps": 4}
    assert handle.summary().sparse_calls == 4


def sample(transformer: Any, times: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 9, 32, 32, generator=generator)
    text = torch.randn(1, 16, 32, generator=generator)
    for time in times:
        with torch.no_grad():
            change = transformer(
                hidden_states=x, timestep=torch.tensor([time]), encoder_hidden_states=text
            ).sample
        x = x - 0.1 * change
    return x


def test_parameters_are_given_as_the_readme_shows(wan: TinyPipeline) -> None:
    with vidsparse.enabled(wan.pipe, method="svg2", parameters={"compensate": True}) as handle:
        assert handle.method.compensate
    with vidsparse.enabled(wan.pipe, "dense", density=1.0) as handle:
        assert handle.method.name == "dense"


def test_explicit_arguments_win_over_the_preset(wan: TinyPipeline, tmp_path: Path) -> None:
    preset = tmp_path / "mine.json"
    parameters = {"density": 0.25}
    SparseConfig(method="random", parameters=parameters, dense_steps=2, dense_layers=1).save(preset)
    with vidsparse.enabled(wan.pipe, preset=preset) as handle:
        assert (handle.method.name, handle.method.density) == ("random", 0.25)
        assert (handle.schedule.dense_steps, handle.schedule.dense_layers) == (2, 1)
    with vidsparse.enabled(wan.pipe, preset=preset, density=0.5, dense_steps=0) as handle:
        assert (handle.method.name, handle.method.density) == ("random", 0.5)
        assert (handle.schedule.dense_steps, handle.schedule.dense_layers) == (0, 1)
    with vidsparse.enabled(wan.pipe, "oracle", preset=preset) as handle:
        assert (handle.method.name, handle.schedule.dense_steps) == ("oracle", 2)
    config = SparseConfig.load(preset)
    with vidsparse.enabled(wan.pipe, config=config, parameters={"density": 0.4}) as handle:
        assert handle.method.density == 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nope"}, "unknown method 'nope'; choose one of .*svg"),
        ({"density": 0.0}, r"density=0.0 must lie in \(0, 1\]"),
        ({"density": 1.5}, r"density=1.5 must lie in \(0, 1\]"),
        ({"impl": "cuda"}, "unknown impl 'cuda'; choose one of auto, reference"),
        ({"dense_steps": -1}, "dense_steps=-1 must be a share"),
        ({"dense_above_sigma": 2.0}, "dense_above_sigma=2.0 must lie in"),
        ({"preset": "nope"}, "there is no preset file or preset 'nope'"),
        ({"preset": "a", "config": SparseConfig()}, "give either preset= or config="),
        ({"parameters": {"densty": 1}}, "has no parameter 'densty'; did you mean 'density'"),
        ({"method": "dense", "density": 0.3}, "density=0.3 has no effect on method 'dense'.*leave"),
        (
            {"method": "svg2:compensate=true:density=0.2:blocks=[64,64]"},
            r"in Python: method='svg2', density=0.2, "
            r"parameters=\{'compensate': True, 'blocks': \[64, 64\]\}$",
        ),
        ({"method": "svg2:compensate"}, "'compensate' has no '='"),
        ({"method": Interrupting(), "parameters": {"x": 1}}, "no parameter 'x'; it has density"),
    ],
)
def test_bad_arguments_are_one_line_and_attach_nothing(
    wan: TinyPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        vidsparse.enable(wan.pipe, **arguments)
    assert "\n" not in str(error.value)
    assert not wan.pipe.transformer._forward_pre_hooks


def test_enabling_twice_is_an_error_until_disabled(wan: TinyPipeline) -> None:
    handle = vidsparse.enable(wan.pipe)
    with pytest.raises(AlreadyEnabledError, match=r"already enabled on this WanPipeline; call"):
        vidsparse.enable(wan.pipe)
    vidsparse.disable(wan.pipe)
    vidsparse.disable(wan.pipe)
    with vidsparse.enable(wan.pipe):
        pass
    handle.disable()


def test_old_handle_does_not_disable_a_new_one(wan: TinyPipeline) -> None:
    old = vidsparse.enable(wan.pipe)
    old.disable()
    with vidsparse.enabled(wan.pipe, density=1.0) as new:
        old.disable()
        wan.latents()
        assert new.summary().calls == 8


def test_error_inside_the_context_disables(wan: TinyPipeline) -> None:
    with pytest.raises(RuntimeError, match="mine"), vidsparse.enabled(wan.pipe):
        raise RuntimeError("mine")
    assert not wan.pipe.transformer._forward_pre_hooks


def test_unsupported_pipeline_names_the_supported_ones() -> None:
    with pytest.raises(UnsupportedPipelineError, match=r"object has no video .*WanPipeline"):
        vidsparse.enable(object())


def test_swapped_transformer_is_noted_in_the_summary_and_disabled_too() -> None:
    tiny = testing.wan(layers=1)
    old, other = tiny.pipe.transformer, testing.wan(layers=1).pipe.transformer
    handle = vidsparse.enable(tiny.pipe)
    assert handle.summary().note is None
    tiny.pipe.transformer = other
    tiny.latents()
    summary = handle.summary()
    assert summary.calls == 0
    assert "no longer holds" in str(summary).splitlines()[-1]
    vidsparse.disable(tiny.pipe)
    assert not old._forward_pre_hooks
    assert handle.summary().note is None
    vidsparse.enable(tiny.pipe).disable()
