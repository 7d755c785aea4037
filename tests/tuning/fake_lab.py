"""A lab whose clips are formulas: quality falls and speed rises with what is left out."""

from dataclasses import dataclass, field

from vidsparse.config import SparseConfig
from vidsparse.plan import CallSite
from vidsparse.tuning.errors import OutputError
from vidsparse.tuning.lab import CHECKS, Trial, never
from vidsparse.tuning.speed import step_densities
from vidsparse.tuning.target import Scores

STEPS = 20
# A schedule with shift 4.
SIGMAS = [round(4 * s / (1 + 3 * s), 4) for s in (1 - i / STEPS for i in range(STEPS))]
LAYERS = 4
DENSE_SECONDS = 10.0
# Shares of a dense step: attention, and what planning costs on top.
ATTENTION, PLANNING = 0.7, {"svg": 0.02, "draft": 0.04, "svg2": 0.12}
# PSNR at density 0.3 with 20 % dense steps; each halving of the density costs 4 dB.
STRENGTH = {"svg": 25.0, "draft": 27.0, "svg2": 29.0}
ERRORS = {"svg": 0.3, "draft": 0.2, "svg2": 0.1}


def sparse_sigmas(config: SparseConfig) -> list[float]:
    above = 2.0 if config.dense_above_sigma is None else config.dense_above_sigma
    return [sigma for sigma in SIGMAS if sigma <= above]


def seconds_of(config: SparseConfig | None) -> float:
    if config is None:
        return DENSE_SECONDS
    seconds = DENSE_SECONDS
    if config.method != "dense":
        sparse = sparse_sigmas(config)
        saved = [
            ATTENTION * (1 - d) - PLANNING[config.method] for d in step_densities(config, sparse)
        ]
        seconds -= DENSE_SECONDS / STEPS * sum(saved)
    if config.cache is not None:
        seconds *= 0.9
    if config.precision != "native":
        seconds *= 0.8
    return seconds


@dataclass
class FakeLab:
    """Attributes: ``cache_psnr`` is what a cache alone reaches; ``log`` what was generated."""

    cache_psnr: float = 20.0
    gap: float = 0.0
    floor_name: str = "fake"
    log: list[str] = field(default_factory=list)

    def dense(self, scene) -> float:
        self.log.append(f"dense {scene.seed}")
        return DENSE_SECONDS

    def observe(self, attention, scene) -> None:
        self.log.append("observed")
        (looker,) = attention.lookers
        looker.found += [
            OutputError(variant.label, density, layer, step, SIGMAS[step], error)
            for variant in looker.variants
            for density in looker.densities
            for layer in range(LAYERS)
            for step in (5, 15)
            for error in (ERRORS[variant.method] * (layer + 1) / density,)
        ]
        for step, sigma in enumerate(SIGMAS):
            site = CallSite("transformer", 0, LAYERS, step, STEPS, sigma, 0, 0)
            attention.recorder.record_dense("observed", site)

    def floor(self, scene) -> Scores:
        return Scores(45.0, 0.999)

    def short(self, config, steps, scene) -> list[float]:
        self.log.append("short")
        if config is None:
            return [DENSE_SECONDS / STEPS] * steps
        step = 1 - ATTENTION * (1 - config.build()[0].density) + PLANNING[config.method]
        return [DENSE_SECONDS / STEPS * step] * steps

    def trial(self, config, scene, doomed=never) -> Trial:
        psnr = self.psnr(config) + (self.gap if scene.seed >= 100 else 0.0)
        self.log.append(f"trial {config.method} {scene.seed}")
        checks = []
        for share in CHECKS:
            checks.append((int(share * STEPS), 10 ** (-psnr / 10)))
            if doomed(*checks[-1]):
                return Trial(None, None, checks=tuple(checks), stopped=checks[-1][0])
        return Trial(Scores(psnr, psnr / 40), seconds_of(config), 0.3, 0.4, tuple(checks))

    def psnr(self, config: SparseConfig) -> float:
        from math import log2

        psnr = 100.0
        if config.method != "dense":
            sparse = sparse_sigmas(config)
            mean = sum(step_densities(config, sparse)) / len(sparse)
            warm = 1 - len(sparse) / STEPS
            psnr = STRENGTH[config.method] + 4 * log2(mean / 0.3) + 20 * (warm - 0.2)
            psnr += 1.0 if config.bands else 0.0
        if config.cache is not None:
            psnr = min(psnr, self.cache_psnr)
        return psnr
