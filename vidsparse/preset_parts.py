"""Sections of a preset: budgets by noise level, a step cache, the model, what was measured."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vidsparse.errors import UsageError, did_you_mean


class Section(BaseModel):
    """A table of a preset; unknown keys and wrong types are refused in one line.

    Raises:
        UsageError: a key is unknown, missing, or a value has the wrong type or range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    # Pydantic's own error has several lines and is no UsageError.
    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_one_line(error, type(self))) from None


class Band(Section):
    """Densities for a range of noise levels: from ``above_sigma`` up to the next band.

    Attributes:
        above_sigma: the band holds for noise levels above this, in [0, 1].
        density: kept share of query-key pairs in (0, 1]; 1 is dense.
        layers: one density per layer instead of ``density``, in the order of execution.
    """

    above_sigma: float = Field(ge=0, le=1)
    density: float | None = Field(default=None, gt=0, le=1)
    layers: list[float] | None = None

    def model_post_init(self, context: Any) -> None:
        """Check what holds between the fields."""
        if (self.density is None) == (self.layers is None):
            raise ValueError("give either density or layers")
        if any(not 0 < value <= 1 for value in self.layers or (1.0,)) or self.layers == []:
            raise ValueError(f"layers={self.layers} must hold densities in (0, 1]")

    def of_layer(self, layer: int) -> float:
        """Return the density of a layer, counted from 0."""
        if self.layers is None:
            return float(self.density or 1.0)
        return self.layers[layer]

    def mean(self) -> float:
        """Return the mean density over the layers."""
        return sum(self.layers) / len(self.layers) if self.layers else float(self.density or 1.0)

    def scaled(self, factor: float) -> "Band":
        """Return the band with its densities multiplied, at most 1."""
        if self.layers is None:
            return Band(above_sigma=self.above_sigma, density=min(1.0, self.mean() * factor))
        return Band(
            above_sigma=self.above_sigma,
            layers=[round(min(1.0, density * factor), 4) for density in self.layers],
        )


class StepCache(Section):
    """One of diffusers' caches, which skip work of steps that hardly differ.

    Attributes:
        name: which one; see ``vidsparse.pipelines.step_cache``.
        parameters: fields of its diffusers configuration.
    """

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class ModelId(Section):
    """The model a preset is for, by class and configuration, never by name.

    Attributes:
        pipeline: class of the pipeline; for people, fine-tunes and other tasks may differ.
        transformers: by attribute name in the pipeline, "class" and values of its configuration;
            only what is given is compared.
    """

    pipeline: str | None = None
    transformers: dict[str, dict[str, Any]]


# Bounds that a target may hold; see vidsparse.tuning.target.
_BOUNDS = ("min_psnr", "min_ssim", "max_lpips")


class Measured(Section):
    """What was measured, on what.

    Attributes:
        device: product name.
        dtype: of the weights.
        tokens: video and text tokens of one attention call.
        size: width, height and frames of the clips.
        steps: denoising steps.
        guidance: guidance scale.
        clips: held-out clips behind the figures.
        psnr: mean over the clips in dB against dense; 100 at most, which means equal.
        psnr_interval: 95 % interval of that mean.
        ssim: mean structural similarity; this and what follows is left out where not measured.
        lpips: mean LPIPS distance (AlexNet).
        floor_psnr: PSNR in dB between dense clips of two precisions; more means nothing.
        speedup: dense over sparse denoising time.
        predicted_speedup: the same, predicted before: from timed steps, or with a step cache or
            8 bits from the clips tuned on.
        dense_seconds: of denoising a clip densely.
        density: mean kept share of the sparse calls.
        overall_density: the same, dense calls counting 1.
        target: bounds that were asked for, by name: min_psnr, min_ssim, max_lpips.
        versions: of the packages.
        commit: of vidsparse.
        date: of the measurement, UTC.
    """

    device: str
    dtype: str
    tokens: int | None = None
    size: list[int] | None = None
    steps: int | None = None
    guidance: float | None = None
    clips: int
    psnr: float
    psnr_interval: list[float] | None = None
    ssim: float | None = None
    lpips: float | None = None
    floor_psnr: float | None = None
    speedup: float | None = None
    predicted_speedup: float | None = None
    dense_seconds: float | None = None
    density: float | None = None
    overall_density: float | None = None
    target: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    date: str | None = None

    @field_validator("target")
    @classmethod
    def _known(cls, target: dict[str, float]) -> dict[str, float]:
        unknown = next((name for name in target if name not in _BOUNDS), None)
        if unknown is not None:
            raise ValueError(f"unknown bound {unknown!r}; allowed are {', '.join(_BOUNDS)}")
        return target


Status = Literal["own", "published", "measured"]
STATUS_TEXT = {
    "own": "no record of a measurement",
    "published": "published, not measured here",
    "measured": "measured",
}


def _one_line(error: ValidationError, cls: type[BaseModel]) -> str:
    # A mistyped key also makes the right one missing: say the former.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = list(cls.model_fields)
        return (
            f"unknown key {where[0]!r}{did_you_mean(where[0], known)}; "
            f"allowed are {', '.join(known)}"
        )
    if first["type"] == "missing":
        return f"{where[0]} is missing"
    if first["type"] == "value_error":
        return ": ".join([*where[:1], str(first["ctx"]["error"])])
    return f"{where[0]}={first['input']!r}: {first['msg']}"
