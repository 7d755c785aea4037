"""What sparse attention can save at most, before anyone spends hours on it."""

from collections.abc import Sequence

DENSITIES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
WARM_UPS = (0.0, 0.1, 0.2, 0.3)


def ceiling(share: float, density: float, warm_up: float) -> float:
    """Return the speed-up when sparse attention costs its density and planning nothing.

    Only a dense baseline that is slower per query-key pair than the sparse kernels, such as one
    with a mask over padding, can be beaten by more.

    Args:
        share: of the denoising time spent in self-attention, in [0, 1].
        density: kept share of query-key pairs, in (0, 1].
        warm_up: share of steps that stay dense, in [0, 1].
    """
    return 1 / (1 - share * (1 - warm_up) * (1 - density))


def ceilings(share: float) -> list[dict[str, float]]:
    """Return a row per density and warm-up, for tables."""
    return [
        {"density": d, "dense_steps": w, "speedup": round(ceiling(share, d, w), 3)}
        for d in DENSITIES
        for w in WARM_UPS
    ]


def crossing(tokens: Sequence[int], dense: Sequence[float], sparse: Sequence[float]) -> int | None:
    """Return the token count from which on sparse attention is faster; None if never.

    Between two measured counts the ratio of the times is taken as linear.

    Args:
        tokens: counts, rising.
        dense: time at each.
        sparse: time at each, planning included.
    """
    gains = [d / s for d, s in zip(dense, sparse, strict=True)]
    if gains[-1] <= 1:
        return None
    last = next((i for i in range(len(gains) - 1, -1, -1) if gains[i] <= 1), None)
    if last is None:
        return tokens[0]
    part = (1 - gains[last]) / (gains[last + 1] - gains[last])
    return round(tokens[last] + part * (tokens[last + 1] - tokens[last]))
