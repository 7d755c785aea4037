"""Put what ``vidsparse tune`` found into a results file, and measure its preset elsewhere.

``vidsparse tune --min-psnr 30 --grid gpu-large --defaults --out out/tune``, then
``python -m vidsparse.profiling.tune_evidence --tune out/tune --grids gpu,gpu-large --steps 20,50``
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidsparse.clips import Scene
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError, VidsparseError
from vidsparse.generate import Sampling, check_sampling, settle_sampling
from vidsparse.loading import is_bundled, load_pipeline, pick_device, pick_dtype
from vidsparse.models import info
from vidsparse.profiling.environment import run_meta
from vidsparse.profiling.rows import Row, RowFile, module_command, print_error
from vidsparse.quality import load_lpips
from vidsparse.tuning.lab import PipelineLab
from vidsparse.tuning.measure import measure_preset
from vidsparse.tuning.prompts import scenes_for

# Prompts that tuning takes from the front of the list by default; the others are held out.
_TUNED_ON = 2
# What a kept result of ``Validation.as_dict`` says under the same name.
_SAME = (
    "psnr", "ssim", "psnr_per_clip", "speedup", "predicted_speedup", "dense_seconds", "density",
    "overall_density", "reaches", "meets",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a preset is measured.

    Attributes:
        grid: name of a bundled model's size; None for one without a name.
        num_steps: denoising steps.
    """

    grid: str | None
    num_steps: int


def tune_rows(document: Mapping[str, Any], model: str) -> list[Row]:
    """Return a row per setting that ``tune`` ran on held-out clips.

    Args:
        document: what ``tune`` wrote as JSON.
        model: name of the model.

    Returns:
        Rows of case "tuned" (the preset), "rejected" (faster settings that missed the target on
        held-out clips) and "defaults" (each method's, at the preset's time, with the preset's
        paired gain over them).

    Raises:
        UsageError: the document is of an older version.
    """
    if "meta" not in document:
        raise UsageError("tune.json has no meta: run vidsparse tune again, it goes on at the end")
    place = _place(model, document["meta"]["sampling"])
    held_out = document["held_out"]
    chosen = len(held_out) - 1 if held_out and held_out[-1]["meets"] else None
    rows = [
        _row("tuned" if index == chosen else f"rejected {index}", found, place)
        for index, found in enumerate(held_out)
    ]
    rows += [_row("defaults", found, place) for found in document["defaults_at_equal_time"]]
    return [{**row, "target": document["target"]} for row in rows]


def elsewhere_rows(
    pipe: Any,
    config: SparseConfig,
    places: Sequence[tuple[Place, Sampling]],
    scenes: Sequence[Scene],
    *,
    label: str,
) -> Iterator[Row]:
    """Measure a preset at other sizes and numbers of steps, one row at a time.

    Args:
        pipe: the model the preset is for.
        config: the preset.
        places: names and options of what is generated.
        scenes: prompts and seeds, the same everywhere.
        label: how rows name the preset.
    """
    lpips = load_lpips(pipe.device)
    for place, sampling in places:
        check_sampling(pipe, sampling)
        lab = PipelineLab(pipe, sampling, lpips)
        found = measure_preset(lab, config.model_copy(update={"model": None}), scenes, label=label)
        target = None if found.target is None else str(found.target)
        yield {**_row("elsewhere", found.as_dict(), place), "target": target}


def resume_row(killed: Path, finished: Path, preset: Path, replayed: Path) -> Row:
    """Compare a journal as a kill left it with the finished one, and two presets.

    Args:
        killed: the journal's lines at the kill.
        finished: the journal of the same folder after the search went on to its end.
        preset: what it wrote.
        replayed: what a run from the finished journal wrote.

    Returns:
        Lines at the kill and at the end, whether the former begin the latter with no key twice,
        and whether both presets hold the same settings and scores.

    Raises:
        UsageError: a file is missing.
    """
    # A line that the kill cut off is no result.
    before = [line for line in _lines(killed) if line.endswith(b"\n")]
    after = _lines(finished)
    keys = [json.loads(line).get("key") for line in after[1:]]
    return {
        "case": "resume",
        "results_at_kill": len(before) - 1,
        "results": len(keys),
        "kept": after[: len(before)] == before and len(keys) == len(set(keys)),
        "same_preset": _without_origin(preset) == _without_origin(replayed),
    }


def _lines(journal: Path) -> list[bytes]:
    try:
        return journal.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UsageError(f"cannot read the journal {journal}: {error}") from None


def _without_origin(preset: Path) -> dict[str, Any]:
    values = SparseConfig.load(preset).as_dict()
    origin = ("date", "commit")
    measured = {k: v for k, v in (values.get("measured") or {}).items() if k not in origin}
    return {**values, "measured": measured}


def _row(case: str, found: Mapping[str, Any], place: Place) -> Row:
    config, gain = found["config"], found.get("tuned_gain_db") or {}
    speedup, predicted = found["speedup"], found["predicted_speedup"]
    return {
        "case": case,
        "method": config["method"],
        "setting": found["label"],
        "grid": place.grid,
        "num_steps": place.num_steps,
        "seconds": found["dense_seconds"] / speedup,
        **{name: found[name] for name in _SAME},
        "psnr_low": found["psnr_interval"]["low"],
        "psnr_high": found["psnr_interval"]["high"],
        "clips": found["psnr_interval"]["count"],
        "prediction_error": None if predicted is None else predicted / speedup - 1,
        "gain_db": gain.get("mean"),
        "gain_low": gain.get("low"),
        "gain_high": gain.get("high"),
    }


def _place(model: str, sampling: Mapping[str, Any]) -> Place:
    size = sampling.get("height", 0), sampling.get("width", 0), sampling.get("num_frames", 0)
    grid = info(model).grid_of(*size) if is_bundled(model) else None
    return Place(grid, sampling["num_inference_steps"])


def main(arguments: list[str] | None = None) -> int:
    """Gather and measure from the command line."""
    options = _parser().parse_args(arguments)
    try:
        if (options.killed is None) != (options.replayed is None):
            raise UsageError("--killed and --replayed belong together")
        if not (options.tune / "preset.toml").is_file():
            raise UsageError(
                f"{options.tune} holds no preset.toml; give the --out of vidsparse tune"
            )
        _run(options)
    except VidsparseError as error:
        print_error(f"error: {error}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vidsparse.profiling.tune_evidence")
    parser.add_argument("--tune", type=Path, required=True, help="folder of vidsparse tune")
    parser.add_argument("--killed", type=Path, help="the journal as a kill left it")
    parser.add_argument("--replayed", type=Path, help="preset of a run from the whole journal")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--grids", help="sizes to measure the preset at; none if not given")
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the rows --out already has")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    command = module_command("vidsparse.profiling.tune_evidence")
    keep = RowFile(options.out, run_meta(device, command), append=options.append)
    preset = options.tune / "preset.toml"
    for row in _found_rows(options, preset):
        keep(row)
    if options.grids:
        _measure(options, SparseConfig.load(preset), device, keep)


def _found_rows(options: argparse.Namespace, preset: Path) -> Iterator[Row]:
    report = options.tune / "tune.json"
    if not report.is_file():
        print_error(f"{report} is missing: tuning was cut off after it wrote the preset")
    else:
        yield from tune_rows(json.loads(report.read_text(encoding="utf-8")), options.model)
    if options.killed is not None:
        yield resume_row(options.killed, options.tune / "journal.jsonl", preset, options.replayed)


def _measure(
    options: argparse.Namespace,
    config: SparseConfig,
    device: torch.device,
    keep: Callable[[Row], None],
) -> None:
    if config.method == "dense" and config.cache is None:
        print_error("the preset is dense generation: there is nothing to measure elsewhere")
        return
    _, scenes = scenes_for(
        options.model, None, tuning=_TUNED_ON, held_out=options.clips, seed=options.seed
    )
    settle = partial(settle_sampling, options.model)
    places = [
        (Place(grid, steps), settle(grid, Sampling(steps=steps)))
        for grid in options.grids.split(",")
        for steps in map(int, options.steps.split(","))
    ]
    pipe = load_pipeline(options.model, device=device, dtype=pick_dtype(options.dtype, device))
    for row in elsewhere_rows(pipe, config, places, scenes, label="tuned preset"):
        keep(row)


if __name__ == "__main__":
    sys.exit(main())
