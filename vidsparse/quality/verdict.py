"""Say what a distance from dense means, against what two dense runs differ by.

The scale has two ends, both measured on the same clips. The *floor* is how far a dense run with
another precision or attention backend lies from the dense one: differences below it mean nothing.
A *stranger* is the dense clip of another seed (of the same prompt where there is one): a video
that shares nothing with the clip but how it was made.

The rule, per method:

1. **indistinguishable**: every frame is dense's, or the method is not worse than the floor. That
   is a test of non-inferiority on paired clips: the lower end of the 95 % interval of
   (method - floor) must not fall under -0.5 dB of PSNR and -0.005 of SSIM, nor its LPIPS rise
   above the floor's by 0.005 where there is LPIPS. A wide interval, from few clips, does not pass.
   With a single clip its difference stands in for the interval.
2. **same content**: at least 90 % of the clips are kept. Where a clip lies between the stranger
   (0) and the floor (1) is read off its SSIM; it is kept past the midpoint, if a judge of content
   (bundled model) finds everything in it that it finds in the dense clip. The judge answers for
   what is shown, SSIM for its being this clip and not another one that shows the same.
3. **diverged**: otherwise.

**undecided** is what remains when the first does not hold and nothing can tell the other two
apart: a single clip, so that there is no stranger, and no judge that misses something.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from vidsparse.quality.frames import PSNR_OF_EQUAL_FRAMES
from vidsparse.quality.intervals import bootstrap_mean
from vidsparse.quality.measure import Quality

PSNR_MARGIN = 0.5
SSIM_MARGIN = 0.005
LPIPS_MARGIN = 0.005
KEPT_SHARE = 0.9
KEPT_BEYOND = 0.5

INDISTINGUISHABLE = "indistinguishable"
SAME_CONTENT = "same content"
DIVERGED = "diverged"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """What a method's distance from dense means.

    Attributes:
        name: "indistinguishable", "same content", "diverged" or "undecided".
        reason: the figures that decided it, one line.
        kept: share of clips whose content is kept, in [0, 1]; None when nothing can tell.
        position: mean of (SSIM - stranger) / (floor - stranger): 0 as far as another seed, 1 as
            close as another dense run; None without a stranger.
    """

    name: str
    reason: str
    kept: float | None
    position: float | None


def judge(
    method: Sequence[Quality],
    floor: Sequence[Quality] | None,
    strangers: Sequence[float] | None,
    losses: Sequence[bool] | None,
    prompts: Sequence[Hashable],
) -> Verdict:
    """Apply the rule above to one method.

    Args:
        method: one entry per clip, against the dense clip.
        floor: the same of another dense run; None when none was made.
        strangers: per clip, SSIM of the dense clip to another seed's; None without any.
        losses: per clip, whether content is lost that the dense clip shows; None without a judge.
        prompts: of each clip, for the intervals.
    """
    positions = None if strangers is None else _positions(method, floor, strangers)
    kept = _kept(positions, losses)
    position = None if positions is None else fmean(positions)
    close, why = _indistinguishable(method, floor, prompts)
    if close:
        return Verdict(INDISTINGUISHABLE, why, None if kept is None else fmean(kept), position)
    if kept is None:
        why += "; one clip cannot tell the same content from other: give --seeds 2 or more"
        return Verdict(UNDECIDED, why, None, position)
    share = fmean(kept)
    judges = ("the content check", losses), ("SSIM", strangers)
    by = " and ".join(name for name, asked in judges if asked is not None)
    why += f"; {sum(kept)} of {len(kept)} clips keep their content by {by}"
    return Verdict(SAME_CONTENT if share >= KEPT_SHARE else DIVERGED, why, share, position)


def _indistinguishable(
    method: Sequence[Quality], floor: Sequence[Quality] | None, prompts: Sequence[Hashable]
) -> tuple[bool, str]:
    if all(quality.identical for quality in method):
        return True, "every frame is dense's"
    if floor is None:
        return False, "no floor was measured"
    psnr = _least([_psnr(a) - _psnr(b) for a, b in zip(method, floor, strict=True)], prompts)
    ssim = _least([a.mean_ssim - b.mean_ssim for a, b in zip(method, floor, strict=True)], prompts)
    lpips = _least_lpips(method, floor, prompts)
    close = psnr >= -PSNR_MARGIN and ssim >= -SSIM_MARGIN
    close = close and (lpips is None or lpips >= -LPIPS_MARGIN)
    bound = "lower bound of method - floor" if len(method) > 1 else "method - floor, one clip"
    far = "" if lpips is None else f", LPIPS at most {-lpips:+.4f}"
    return close, f"{bound}: {psnr:+.2f} dB, SSIM {ssim:+.4f}{far}"


def _psnr(quality: Quality) -> float:
    return min(quality.mean_psnr, PSNR_OF_EQUAL_FRAMES)


def _least(differences: list[float], prompts: Sequence[Hashable]) -> float:
    """Return the lower end of the interval of the mean; for one clip its difference."""
    found = bootstrap_mean(differences, prompts)
    return found.mean if found.low is None else found.low


def _least_lpips(
    method: Sequence[Quality], floor: Sequence[Quality], prompts: Sequence[Hashable]
) -> float | None:
    """Return the same of LPIPS with its sign turned, so that more is better; None without it."""
    pairs = [(a.mean_lpips, b.mean_lpips) for a, b in zip(method, floor, strict=True)]
    known = [b - a for a, b in pairs if a is not None and b is not None]
    return _least(known, prompts) if len(known) == len(pairs) else None


def _positions(
    method: Sequence[Quality], floor: Sequence[Quality] | None, strangers: Sequence[float]
) -> list[float]:
    ends = [1.0] * len(method) if floor is None else [quality.mean_ssim for quality in floor]
    clips = zip(method, ends, strangers, strict=True)
    # A stranger closer than the floor leaves no scale: nothing is then kept but what is closer.
    return [(q.mean_ssim - low) / max(high - low, 1e-6) for q, high, low in clips]


def _kept(positions: Sequence[float] | None, losses: Sequence[bool] | None) -> list[bool] | None:
    """Say of each clip that can be told whether it is kept; None when none can."""
    count = len(positions or losses or ())
    places = [None] * count if positions is None else positions
    lost = [False] * count if losses is None else losses
    found = [_is_kept(place, loss) for place, loss in zip(places, lost, strict=True)]
    return [kept for kept in found if kept is not None] or None


def _is_kept(position: float | None, lost: bool) -> bool | None:
    if lost:
        return False
    return None if position is None else position > KEPT_BEYOND
