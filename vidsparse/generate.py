"""Settle the sampling options, generate a clip and time its denoising."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vidsparse import models
from vidsparse.errors import UnsupportedPipelineError, UsageError
from vidsparse.loading import is_bundled

# Called after each denoising step with the number of steps done and of all steps.
OnStep = Callable[[int, int], None]
# The same, with the latents after the step.
OnLatents = Callable[[int, int, Tensor], None]

_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
_TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


@dataclass(frozen=True)
class Sampling:
    """Options of one generation; None leaves the pipeline's default.

    Attributes:
        height: pixels.
        width: pixels.
        num_frames: frames of the clip.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 turns it off in most pipelines.
        negative_prompt: what the guidance moves away from.

    Raises:
        UsageError: a number is out of range for every model; ``check_sampling`` knows one.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise UsageError(
                f"guidance={self.guidance} must be a finite number of at least 0; "
                "usual values are 1 to 7"
            )

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's keyword arguments."""
        values = {
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative_prompt,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Clip:
    """A generated clip.

    Attributes:
        video: (F, 3, H, W) float32 in [0, 1] on the CPU.
        denoise_seconds: from the first transformer call's start to the last one's end.
        total_seconds: the whole pipeline call, text encoding and VAE decoding included.
    """

    video: Tensor
    denoise_seconds: float
    total_seconds: float


def settle_sampling(model: str, grid: str | None, asked: Sampling) -> Sampling:
    """Fill what was not asked for from the bundled model's card.

    Args:
        model: as ``load_pipeline`` takes it.
        grid: name of one of a bundled model's grids; its first by default.
        asked: what the user gave.

    Raises:
        UsageError: the grid is unknown, or given for a model that has none.
    """
    if not is_bundled(model):
        if grid is not None:
            raise UsageError(
                f"--grid {grid} needs a bundled model; give --height, --width, --num-frames"
            )
        return asked
    card = models.info(model)
    name = next(iter(card.grids)) if grid is None else grid
    if name not in card.grids:
        raise UsageError(f"model {model!r} has no grid {grid!r}; it has {', '.join(card.grids)}")
    size = card.grids[name]
    return Sampling(
        height=size.height if asked.height is None else asked.height,
        width=size.width if asked.width is None else asked.width,
        num_frames=size.num_frames if asked.num_frames is None else asked.num_frames,
        steps=card.steps if asked.steps is None else asked.steps,
        guidance=card.guidance if asked.guidance is None else asked.guidance,
        negative_prompt=asked.negative_prompt,
    )


def check_sampling(pipe: Any, sampling: Sampling) -> None:
    """Refuse sizes the VAE and the patches cannot make, before anything is generated.

    Raises:
        UsageError: a size does not fit.
    """
    multiple = size_multiple(pipe)
    for name, value in (("height", sampling.height), ("width", sampling.width)):
        if value is not None and value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise UsageError(
                f"{name}={value} must be a multiple of {multiple} for this model; use {near}"
            )
    stride, frames = _first_attribute(pipe, _TEMPORAL, 1), sampling.num_frames
    if frames is not None and (frames - 1) % stride:
        near = round((frames - 1) / stride) * stride + 1
        raise UsageError(f"num_frames={frames} must be {stride} * n + 1 for this model; use {near}")


def size_multiple(pipe: Any) -> int:
    """Return what height and width must be a multiple of, in pixels."""
    patch = getattr(transformers_of(pipe)[0].config, "patch_size", 1)
    patch = patch if isinstance(patch, int) else max(patch[1:])
    # Every pipeline in diffusers wants at least 16, whatever its VAE.
    return math.lcm(16, _first_attribute(pipe, _SPATIAL, 8) * patch)


def _first_attribute(pipe: Any, names: tuple[str, ...], default: int) -> int:
    found = (getattr(pipe, name, None) for name in names)
    return next((int(value) for value in found if value is not None), default)


def transformers_of(pipe: Any) -> list[nn.Module]:
    """Return a pipeline's denoisers: one, or two for Wan 2.2.

    Raises:
        UnsupportedPipelineError: it has none.
    """
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    if not any(found):
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no transformer; use a video diffusion transformer pipeline"
        )
    return [module for module in found if module is not None]


def sample(
    pipe: Any,
    prompt: str,
    sampling: Sampling,
    *,
    seed: int,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
) -> Clip:
    """Generate one clip.

    Args:
        pipe: a diffusers text-to-video pipeline.
        prompt: what the video shows.
        sampling: options.
        seed: of the initial noise, drawn on the CPU so that it is the same on every device.
        on_step: called after each step, where the pipeline has step callbacks.
        on_latents: the same, with the latents; what it raises ends the generation.

    Raises:
        UnsupportedPipelineError: the pipeline does not return video frames.
        UsageError: some are NaN or infinite, which a video file would show as black.
    """
    start = time.perf_counter()
    with torch.no_grad(), DenoiseTimer(transformers_of(pipe)) as timer:
        frames = pipe(
            prompt=prompt,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt",
            **sampling.arguments(),
            **_callback(pipe, on_step, on_latents),
        ).frames
    if not isinstance(frames, Tensor) or frames.ndim != 5:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} returned no (B, F, 3, H, W) frames; use a video pipeline"
        )
    video = frames[0].detach().float().cpu()
    if not video.isfinite().all():
        raise UsageError(
            f"the clip of seed {seed} holds NaN or infinite values, which a video would show as "
            "black; try another --dtype or --guidance, or compare with dense"
        )
    video = video.clamp(0, 1)
    return Clip(video, timer.seconds(), time.perf_counter() - start)


def warm_up(pipe: Any, prompt: str, sampling: Sampling, *, steps: int) -> None:
    """Run a few untimed steps, so that the first timed clip pays for no compilation."""
    options = {**sampling.arguments(), "num_inference_steps": steps}
    with torch.no_grad():
        pipe(prompt=prompt, generator=torch.Generator("cpu"), output_type="latent", **options)


def has_step_callback(pipe: Any) -> bool:
    """Say whether a pipeline reports its steps."""
    return "callback_on_step_end" in inspect.signature(pipe).parameters


def _callback(
    pipe: Any, on_step: OnStep | None, on_latents: OnLatents | None = None
) -> dict[str, Any]:
    if (on_step is None and on_latents is None) or not has_step_callback(pipe):
        return {}

    def step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, pipe.num_timesteps)
        if on_latents is not None:
            on_latents(step + 1, pipe.num_timesteps, tensors["latents"])
        return tensors

    return {"callback_on_step_end": step_end}


class DenoiseTimer:
    """Time from the first transformer call's start to the last one's end.

    On a GPU it records events, which wait for nothing, and reads them afterwards. The first call's
    inputs say once which: offloaded weights lie on the CPU before a call and on the GPU after it.
    """

    def __init__(self, transformers: list[nn.Module]) -> None:
        self._transformers = transformers
        self._on_gpu = False
        self._first: Any = None
        self._last: Any = None

    def __enter__(self) -> "DenoiseTimer":
        self._hooks = [
            m.register_forward_pre_hook(self._begin, with_kwargs=True) for m in self._transformers
        ]
        self._hooks += [m.register_forward_hook(self._end) for m in self._transformers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def seconds(self) -> float:
        """Return the time in seconds; 0 when no transformer was called."""
        if self._first is None:
            return 0.0
        if isinstance(self._first, float):
            return float(self._last - self._first)
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1000

    def _begin(self, module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        if self._first is None:
            self._on_gpu = _any_on_gpu((*args, *named.values()))
            self._first = _now(on_gpu=self._on_gpu)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._last = _now(on_gpu=self._on_gpu)


def _any_on_gpu(inputs: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.is_cuda for value in inputs)


def _now(*, on_gpu: bool) -> Any:
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
