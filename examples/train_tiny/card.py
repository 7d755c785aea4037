"""Write the bundled model's card and figures from JSON files; no number is typed by hand.

python examples/train_tiny/card.py
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from draw import draw_attention, draw_training

from vidsparse.models import ModelInfo, info
from vidsparse.models import grammar as words

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "vidsparse" / "models" / "tiny"
RESULTS = ROOT / "profiling" / "results"

INTRO = """# tiny: a text-to-video model small enough to ship

{million:.1f} M parameters of Wan's architecture, trained from nothing on procedural clips of moving
shapes. It makes the quality of sparse attention measurable without a download: the same
`WanPipeline`, real 3-D attention, real classifier-free guidance, and clips whose truth is known.
It is for tests and measurements, not for making videos of anything else.

```python
from vidsparse.models import load

pipe = load("tiny")  # or WanPipeline.from_pretrained(vidsparse.models.path("tiny"))
video = pipe(
    "{prompt}",
    height={height},
    width={width},
    num_frames={frames},
    num_inference_steps={steps},
    guidance_scale={guidance},
).frames
```

Licence: {licence}, weights and code. The training data are drawn by a program and owe nothing to
anybody's pictures.
"""

DATA = """`examples/train_tiny/scenes.py` draws clips without end from a seed: one to three objects
with shape, colour, size, direction and speed, some that bounce, over plain or patterned
backgrounds that may drift, under a camera that may pan or zoom. Each clip has a caption from a
grammar (`vidsparse/models/grammar.py`): {shapes}; {colours}; {directions}. Words outside of it are
ignored. About one in eight combinations of shape, colour and direction is never shown in training;
the content check asks for those only."""

LIMITS = """## Limits

- It knows {vocabulary} words. A prompt without any of them gives a clip of anything, and a note.
- Sizes other than its grids work, with a warning and without a promise.
- Speed-ups on its short sequences say little about models of 14 B parameters: their attention is
  longer and their heads are wider. Its heads are of size {head}, theirs mostly of 128.
- The content check judges colour, shape and direction of single objects that move in a straight
  line. It does not judge sharpness, backgrounds, camera or speed.
"""


def read(path: Path, how: str) -> Any:
    """Load a JSON file.

    Raises:
        FileNotFoundError: it is missing; the message says which command makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: {how}")
    return json.loads(path.read_text())


def prose(text: str) -> str:
    """Wrap a paragraph at 100 columns."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n\n"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def intro(card: ModelInfo, record: dict[str, Any]) -> str:
    """Say what it is and how to load it."""
    grid = next(iter(card.grids.values()))
    return INTRO.format(
        million=sum(record["parameters"].values()) / 1e6,
        prompt="a small red circle moves right over drifting green stripes",
        height=grid.height,
        width=grid.width,
        frames=grid.num_frames,
        steps=card.steps,
        guidance=card.guidance,
        licence=card.licence,
    )


def data() -> str:
    """Describe the training clips."""
    lists = {"shapes": words.SHAPES, "colours": words.COLOURS, "directions": words.DIRECTIONS}
    text = DATA.format(**{name: ", ".join(items) for name, items in lists.items()})
    return "## Data\n\n" + prose(text)


def architecture(folder: Path, record: dict[str, Any]) -> str:
    """Describe the parts by their configs."""
    parts = {p: json.loads((folder / p / "config.json").read_text()) for p in record["parameters"]}
    dit, vae, text = parts["transformer"], parts["vae"], parts["text_encoder"]
    space, time = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
    what = {
        "transformer": f"{dit['num_layers']} layers, {dit['num_attention_heads']} heads of size "
        f"{dit['attention_head_dim']}, patches of {'x'.join(map(str, dit['patch_size']))} latents",
        "vae": f"{space}x{space} pixels and {time} frames to a latent of {vae['z_dim']} channels, "
        f"encoder from {vae['base_dim']} and decoder from "
        f"{vae['decoder_base_dim'] or vae['base_dim']} channels, times {vae['dim_mult']}",
        "text_encoder": f"{text['num_layers']} layers, width {text['d_model']}, "
        f"{text['vocab_size']} tokens; the tokenizer drops unknown words",
    }
    classes = {"transformer": dit["_class_name"], "vae": vae["_class_name"]}
    rows = [
        [part, f"`{classes.get(part, 'UMT5EncoderModel')}`", f"{n / 1e6:.2f} M", what[part]]
        for part, n in record["parameters"].items()
    ]
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    return f"## Architecture\n\nbfloat16, {size:.1f} MB in all.\n\n" + table(
        ["part", "class", "parameters", "what"], rows
    )


def grids(card: ModelInfo, record: dict[str, Any]) -> str:
    """List the trained sizes."""
    curves = record["transformer"]["curves"]
    rows = [
        [
            f"`{name}`" if name in card.grids else name,
            f"{one['width']}x{one['height']}",
            one["frames"],
            ((one["frames"] - 1) // 4 + 1) * (one["height"] // 8) * (one["width"] // 8),
            one["batch"],
        ]
        for name, one in ((grid["name"], grid) for grid in record["settings"]["grids"])
        if name in curves
    ]
    head = ["grid", "pixels", "frames", "video tokens", "clips per step"]
    text = "Those with a name for `--grid` are marked; the others only helped training.\n"
    return "## Grids\n\n" + table(head, rows) + "\n" + text


def training(record: dict[str, Any]) -> str:
    """Tell steps, time and device, with the figure."""
    vae, dit = record["vae"], record["transformer"]
    decibels = " and ".join(f"{dB:.1f} dB on `{grid}`" for grid, dB in vae["psnr_db"].items())
    told = (
        f"On {record['device']}, code of commit `{record['commit']}`, "
        f"seed {record['settings']['seed']}. "
        f"The VAE took {vae['steps']} steps in {vae['seconds']:.0f} s and reconstructs unseen "
        f"clips at {decibels}. Transformer and text encoder together took "
        f"{dit['steps']} steps in {dit['seconds']:.0f} s by flow matching (Muon for the blocks' "
        f"matrices, AdamW for the rest, learning rate {record['settings']['lr']}); the weights "
        f"are an average over steps with decay {record['settings']['ema']}. "
        "All settings and curves are in `training.json`."
    )
    return "## Training\n\n" + prose(told) + "![Loss curves](training.png)\n"


def content(checks: list[dict[str, Any]], card: ModelInfo) -> str:
    """Tabulate the content checks."""
    rows = []
    for check in checks:
        size = check["settings"]
        grid = card.grid_of(size["height"], size["width"], size["num_frames"])
        shares = [f"{check[key]:.3f}" for key in ("shape", "colour", "direction")]
        rows.append(
            [
                f"`{grid}`",
                check["clips"],
                *shares,
                f"{check['floor_psnr']:.1f}",
                f"{check['seconds'] / check['clips']:.1f}",
                f"{check['meta']['device']}, {check['dtype']}",
            ]
        )
    head = ["grid", "clips", "shape", "colour", "direction", "floor dB", "s per clip", "device"]
    told = (
        "`vidsparse models --check tiny` generates held-out captions with the default steps and "
        "lets a detector score them (OpenCV: hue, contour, track). Shares of clips that are right; "
        "*floor* is the PSNR between dense clips in bfloat16 and float32, which no sparse method "
        "can be asked to exceed."
    )
    return "## Does it draw what the caption says?\n\n" + prose(told) + table(head, rows)


def attention(study: dict[str, Any]) -> str:
    """Tabulate the attention study, with the figure."""
    rows = [
        [
            f"`{row['grid']}`",
            row["tokens"],
            *(f"{value:.3f}" for value in row["mean_oracle_recall"].values()),
            f"{1 - row['temporal_share']:.2f} / {row['temporal_share']:.2f}",
        ]
        for row in study["rows"]
    ]
    first = study["rows"][0]
    densities = [f"recall at {density}" for density in first["mean_oracle_recall"]]
    head = ["grid", "tokens", *densities, "spatial / temporal"]
    told = (
        f"Oracle recall: the share of attention mass in the best blocks of {first['block']} x "
        f"{first['block']} tokens at a density, the mean over layers, heads, steps and "
        f"{len(first['prompts'])} prompts. Spatial / temporal: the share of heads by SVG's test at "
        f"density {first['svg']['density']} with {first['svg']['rows']} sampled rows."
    )
    figure = "\n![Recall and head types by layer and head](attention.png)\n"
    return "## Its attention\n\n" + prose(told) + table(head, rows) + figure


def limits(folder: Path) -> str:
    """Say what it cannot do."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
    return LIMITS.format(vocabulary=len(words.WORDS), head=config["attention_head_dim"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    card = info("tiny")
    record = read(args.folder / "training.json", "python examples/train_tiny/pack.py")
    study = read(
        args.results / "attention-tiny.json",
        "python examples/train_tiny/attention_study.py --grids all",
    )
    names = sorted(args.results.glob("check-tiny*.json")) or [args.results / "check-tiny.json"]
    checks = [read(name, "vidsparse models --check tiny --json") for name in names]
    draw_training(record, args.folder / "training.png")
    draw_attention(study["rows"], args.folder / "attention.png")
    sections = [
        intro(card, record),
        data(),
        architecture(args.folder, record),
        grids(card, record),
        training(record),
        content(checks, card),
        attention(study),
        limits(args.folder),
    ]
    (args.folder / "README.md").write_text("\n\n".join(map(str.strip, sections)) + "\n")
    print(f"wrote {args.folder / 'README.md'} and its figures")


if __name__ == "__main__":
    main()
