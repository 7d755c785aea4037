"""Pack trained shards as the diffusers folder that ships with vidsparse, and prove it reloads.

python examples/train_tiny/pack.py --shards OUT --log OUT/log.json --device "NVIDIA H100"
"""

import argparse
import json
import os
import shutil
import subprocess
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import WanPipeline
from parts import build_pipeline, build_text_encoder, build_transformer, build_vae
from settings import Grid, Settings
from storage import fill, load_shards
from torch import Tensor

from vidsparse.models import ModelInfo, info

MODELS = Path(__file__).resolve().parents[2] / "vidsparse" / "models"
FILE_BYTES = 15_000_000
TOTAL_BYTES = 40_000_000
SHARD_SIZE = "14MB"
PARTS = ("vae", "text_encoder", "transformer")  # as build_pipeline takes them
# transformers 5 writes a class name that version 4 lacks; this one is the same class in both.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
SENTENCES = ("a small red circle moves right over drifting green stripes", "Ein RED star!", "")
CURVE_POINTS = 80


def read_settings(log: dict[str, Any]) -> Settings:
    """Return the settings of a run from its log; unknown names are from another version."""
    known = {field.name for field in fields(Settings)}
    given = {name: value for name, value in log["settings"].items() if name in known}
    return Settings(**{**given, "grids": tuple(Grid(**grid) for grid in given["grids"])})


def assemble(shards: Path, settings: Settings) -> WanPipeline:
    """Build the pipeline from a run's OUT folder, in float32; all weights fit in bfloat16."""
    vae_tensors, vae_info = load_shards(shards, "vae")
    tensors, _ = load_shards(shards, "dit")
    if not vae_tensors or not tensors:
        raise FileNotFoundError(f"{shards} lacks vae-*.safetensors or dit-*.safetensors")
    vae = build_vae(settings.vae_base)
    fill(vae, vae_tensors, "vae")
    vae.register_to_config(**vae_info["stats"])
    transformer = build_transformer(settings.heads, settings.layers, settings.ffn)
    fill(transformer, tensors, "transformer")
    text_encoder = build_text_encoder()
    fill(text_encoder, tensors, "text_encoder")
    for part in (vae, transformer, text_encoder):
        part.eval()
    return build_pipeline(vae, text_encoder, transformer)


def write(pipe: WanPipeline, folder: Path) -> None:
    """Write the pipeline's parts in bfloat16; other files of the folder stay."""
    for part in (*PARTS, "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    # A copy: buffers that aren't stored, such as the rotary tables, would lose their precision.
    halves = (deepcopy(getattr(pipe, part)).to(torch.bfloat16) for part in PARTS)
    build_pipeline(*halves).save_pretrained(
        folder, safe_serialization=True, max_shard_size=SHARD_SIZE
    )
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("TokenizersBackend", TOKENIZER_CLASS) + "\n")
    for file in folder.rglob("*.safetensors"):
        # safetensors writes files that only their owner may read.
        file.chmod(0o644)


def check_sizes(folder: Path) -> int:
    """Return the bytes of the pipeline's files; the card and its figures don't count.

    Raises:
        ValueError: a file or the folder is too large to ship.
    """
    files = [folder / "model_index.json", *folder.glob("*/*")]
    sizes = {file: file.stat().st_size for file in files}
    large = [str(file) for file, size in sizes.items() if size >= FILE_BYTES]
    total = sum(sizes.values())
    if large or total > TOTAL_BYTES:
        raise ValueError(
            f"{total} bytes in all, at most {TOTAL_BYTES}; files of {FILE_BYTES} bytes or more: "
            f"{large or 'none'}; train a smaller model"
        )
    return total


@torch.no_grad()
def outputs(pipe: WanPipeline) -> dict[str, Tensor]:
    """Run every part once on fixed inputs."""
    draw = torch.Generator().manual_seed(0)
    config = pipe.transformer.config
    latents = torch.randn(1, config.in_channels, 3, 8, 12, generator=draw)
    states, _ = pipe.encode_prompt(SENTENCES[0], do_classifier_free_guidance=False)
    noise = pipe.transformer(latents, torch.tensor([500.0]), states).sample
    return {"text": states, "noise": noise, "video": pipe.vae.decode(latents).sample}


def check_reload(pipe: WanPipeline, folder: Path) -> None:
    """Compare the folder, as a user loads it, with what was packed.

    Raises:
        ValueError: a weight, a token or an output differs in a single bit.
    """
    again = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    for part in PARTS:
        packed, loaded = (getattr(one, part).state_dict() for one in (pipe, again))
        if set(packed) != set(loaded):
            raise ValueError(f"{part}: tensors differ: {sorted(set(packed) ^ set(loaded))[:3]}")
        wrong = [name for name in packed if not torch.equal(packed[name], loaded[name])]
        if wrong:
            raise ValueError(f"{part}: {len(wrong)} tensors changed, first {wrong[0]}")
    for text in SENTENCES:
        if pipe.tokenizer(text).input_ids != again.tokenizer(text).input_ids:
            raise ValueError(f"tokenizer reads {text!r} otherwise after reloading")
    first, second = outputs(pipe), outputs(again)
    wrong = [name for name in first if not torch.equal(first[name], second[name])]
    if wrong:
        raise ValueError(f"outputs changed: {wrong}")


def check_registry(settings: Settings, card: ModelInfo, trained_on: set[str]) -> None:
    """Compare what was trained with what `vidsparse.models` says.

    Raises:
        ValueError: a grid or a default differs, or a grid was never trained on.
    """
    if missing := set(card.grids) - trained_on:
        raise ValueError(
            f"never trained on {', '.join(sorted(missing))}; train on, or look at it with --draft"
        )
    for name, grid in card.grids.items():
        trained = settings.grid(name)
        size = (grid.height, grid.width, grid.num_frames, grid.tokens)
        if size != (trained.height, trained.width, trained.frames, trained.tokens):
            raise ValueError(f"grid {name}: the registry says {size}, trained was {trained}")
    if (settings.steps, settings.guidance) != (card.steps, card.guidance):
        raise ValueError(
            f"trained with {settings.steps} steps and guidance {settings.guidance}, the registry "
            f"says {card.steps} and {card.guidance}"
        )


def thin(history: list[Any]) -> list[Any]:
    """Keep at most CURVE_POINTS rows, evenly, with the last, of four digits."""
    stride = -(-len(history) // CURVE_POINTS) or 1
    rows = history[::-1][::stride][::-1]
    return [[float(f"{x:.4g}") if isinstance(x, float) else x for x in row] for row in rows]


def by_grid(history: list[Any]) -> dict[str, list[Any]]:
    """Split (seconds, step, grid, loss, step seconds) into thinned curves of each grid."""
    names = dict.fromkeys(row[2] for row in history)
    return {name: thin([(row[1], row[3]) for row in history if row[2] == name]) for name in names}


def training_record(
    shards: Path, log: dict[str, Any], pipe: WanPipeline, device: str | None, commit: str | None
) -> dict[str, Any]:
    """Say how the weights were made: settings, time, curves, device, commit."""
    vae, dit = load_shards(shards, "vae")[1], load_shards(shards, "dit")[1]
    sizes = {part: sum(p.numel() for p in getattr(pipe, part).parameters()) for part in PARTS}
    return {
        "device": log.get("device", device),
        "commit": log.get("commit", commit),
        "parameters": sizes,
        "settings": log["settings"],
        "vae": {
            "steps": vae["history"]["steps"],
            "seconds": vae["history"]["history"][-1][0],
            "psnr_db": log.get("vae_psnr"),
            "columns": ["seconds", "step", "loss", "kl", "psnr_db"],
            "curve": thin(vae["history"]["history"]),
        },
        "transformer": {
            "steps": dit["steps"],
            "seconds": dit["seconds"],
            "columns": ["step", "loss"],
            "curves": by_grid(dit["history"]),
        },
        "check_after_training": log.get("check"),
    }


def last_commit() -> str | None:
    """Return the last commit that touched the training code, None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "log", "-1", "--format=%h", "--", "."]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="a run's OUT folder")
    parser.add_argument("--log", type=Path, help="its log.json; in the OUT folder by default")
    parser.add_argument("--to", type=Path, default=MODELS / "tiny")
    parser.add_argument("--device", help="what it was trained on, where the log does not say")
    parser.add_argument("--draft", action="store_true", help="unfinished weights, not to ship")
    parser.add_argument("--commit", help="of the training code; the last one by default")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    log = json.loads((args.log or args.shards / "log.json").read_text())
    settings = read_settings(log)
    if not args.draft:
        history = load_shards(args.shards, "dit")[1]["history"]
        check_registry(settings, info("tiny"), {row[2] for row in history})
    pipe = assemble(args.shards, settings)
    args.to.mkdir(parents=True, exist_ok=True)
    write(pipe, args.to)
    check_reload(pipe, args.to)
    record = training_record(args.shards, log, pipe, args.device, args.commit or last_commit())
    (args.to / "training.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(f"packed {check_sizes(args.to) / 1e6:.2f} MB in {args.to}; reloads bit-equal")


if __name__ == "__main__":
    main()
