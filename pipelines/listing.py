"""What is supported, as rows: one per transformer class of diffusers."""

import json
from pathlib import Path
from typing import Any

from vidsparse import profiling
from vidsparse.pipelines.base import ModelFamily, available_families
from vidsparse.pipelines.not_applicable import NOT_APPLICABLE

_RESULTS = Path(profiling.__file__).parent / "results"

# What a row of ``vidsparse.profiling.check_families`` tells about a run on a GPU.
_OF_A_RUN = (
    "device", "pipeline", "heads", "tokens", "head_size", "dense_equal", "sparse_finite",
    "density", "commit",
)  # fmt: skip


def transformer_rows(results: Path | None = None) -> list[dict[str, Any]]:
    """Return JSON values for every transformer class: first what runs, then what is refused.

    Args:
        results: folder with ``families-*.json``, what ran on GPUs; by default that of this package.
    """
    families, runs = available_families().values(), _gpu_runs(results or _RESULTS)
    return [
        *(_supported(family, name, runs) for family in families for name in family.models),
        *(_refused(name) for name in NOT_APPLICABLE),
    ]


def _gpu_runs(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("families-*.json"))
    return [row for file in files for row in json.loads(file.read_text("utf-8"))["rows"]]


def _supported(family: ModelFamily, transformer: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
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
            "gpu": [
                {name: run[name] for name in _OF_A_RUN}
                for run in runs
                if run["transformer"] == transformer
            ],
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
