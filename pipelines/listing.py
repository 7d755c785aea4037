"""What is supported, as rows: one per transformer class of diffusers."""

from typing import Any

from vidsparse.pipelines.base import ModelFamily, available_families
from vidsparse.pipelines.not_applicable import NOT_APPLICABLE


def transformer_rows() -> list[dict[str, Any]]:
    """Return JSON values for every transformer class: first what runs, then what is refused."""
    families = available_families().values()
    return [
        *(_supported(family, name) for family in families for name in family.models),
        *(_refused(name) for name in NOT_APPLICABLE),
    ]


def _supported(family: ModelFamily, transformer: str) -> dict[str, Any]:
    card = family.card
    return {
        "family": family.name,
        "transformer": transformer,
        "pipelines": list(family.models[transformer]),
        "status": "supported",
        "sparsified": card.sparsified,
        "text": card.text,
        "head_sizes": list(card.head_sizes),
        "preset": card.preset,
        "evidence": {
            "dense equal": _tests(family),
            "sparse": _tests(family),
            "gpu": list(card.gpu_shapes),
        },
    }


def _refused(transformer: str) -> dict[str, Any]:
    entry = NOT_APPLICABLE[transformer]
    return {
        "family": entry.family,
        "transformer": transformer,
        "pipelines": list(entry.pipelines),
        "status": "not applicable",
        "why": entry.why,
    }


def _tests(family: ModelFamily) -> str:
    file = type(family).__module__.rpartition(".")[2]
    return f"tests/pipelines/test_{file}.py"
