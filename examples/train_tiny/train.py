"""Train the bundled model: VAE first, then transformer and text encoder, then look at it.

python examples/train_tiny/train.py --run first --minutes 8.9 --vae-minutes 2.4 --out OUT
python examples/train_tiny/train.py --run second --minutes 8.9 --resume OUT --out OUT2
torchrun --nproc-per-node 2 examples/train_tiny/train.py --run third ... (two GPUs, twice the batch)
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if importlib.util.find_spec("vidsparse") is None:
    # A checkout that isn't installed: the repository's root must stay off the path, because
    # transformers would take its folder "kernels" for Hugging Face's package.
    link = Path(tempfile.mkdtemp()) / "vidsparse"
    link.symlink_to(Path(__file__).resolve().parents[2] / "vidsparse")
    sys.path.insert(0, str(link.parent))

import torch
from fast_vae import speed_up
from inspect_run import check, contact_sheet, ready, sample, vae_sheet
from parts import build_pipeline, build_text_encoder, build_transformer, build_vae, whole_clip
from ranks import Ranks
from settings import RUNS, Settings, small
from storage import fill, load_shards, save_json, save_shards
from train_dit import Trainer
from train_vae import train_vae


class Run:
    """One call of the script: what it was given, what it has reached."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.settings = replace(
            Settings(seed=args.seed),
            decay_from=args.decay_from,
            lr=args.lr,
            guidance=args.guidance,
        )
        if args.smoke:
            self.settings = small(self.settings)
        self.start = time.monotonic()
        self.ranks = Ranks()
        self.device = self.ranks.device
        self.out, self.work = Path(args.out), Path(args.work)
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.log: dict[str, Any] = {"settings": asdict(self.settings), "run": args.run}

    def left(self) -> float:
        """Seconds until the budget ends."""
        return float(self.args.minutes * 60 - (time.monotonic() - self.start))

    def attempt(self, what: str, action: Any) -> None:
        """Do something whose failure must not cost the weights."""
        try:
            action()
        except Exception:
            print(f"FAILED: {what}", flush=True)
            traceback.print_exc()
            self.log.setdefault("failures", []).append(what)

    def vae(self) -> None:
        """Load a finished VAE, else train one and save it at once."""
        folders = [self.work] + ([Path(self.args.resume)] if self.args.resume else [])
        for folder in folders:
            tensors, info = load_shards(folder, "vae")
            if tensors:
                vae = build_vae(self.settings.vae_base)
                fill(vae, tensors, "vae")
                vae.register_to_config(**info["stats"])
                vae = whole_clip(vae).to(self.device).eval().requires_grad_(False)
                self.vae_model = speed_up(vae) if self.device == "cuda" else vae
                print(f"VAE loaded from {folder}", flush=True)
                self.keep_vae(info)
                return
        vae, history = train_vae(self.settings, self.args.vae_minutes * 60, self.device)
        self.vae_model = vae
        stats = {key: history.pop(key) for key in ("latents_mean", "latents_std")}
        self.keep_vae({"stats": stats, "history": history})

    def keep_vae(self, info: dict[str, Any]) -> None:
        """Save the VAE in both folders and draw its reconstructions."""
        self.log["vae"] = info
        if not self.ranks.first:
            return
        state = {f"vae.{name}": t for name, t in self.vae_model.state_dict().items()}
        for folder in (self.work, self.out):
            save_shards(state, folder, "vae", info)

        def draw() -> None:
            for name, count in (("gpu-large", 2), ("cpu", 8)):
                path = self.out / ("vae.png" if name == "cpu" else f"vae-{name}.png")
                grid = self.settings.grid(name)
                psnr = vae_sheet(self.vae_model, self.settings, grid, count, self.device, path)
                self.log.setdefault("vae_psnr", {})[name] = psnr
                print(f"VAE on {name}: {psnr:.2f} dB", flush=True)
            stds = sorted(round(value, 2) for value in info["stats"]["latents_std"])
            print(f"latent std {stds}", flush=True)

        self.attempt("vae sheet", draw)

    def trainer(self) -> Trainer:
        """Build the trainer and resume from this machine's state, else from shards."""
        torch.manual_seed(self.settings.seed + 10)
        s = self.settings
        transformer = build_transformer(s.heads, s.layers, s.ffn).to(self.device)
        text = build_text_encoder().to(self.device)
        state_path = self.work / "state.pt"
        tensors, info = load_shards(Path(self.args.resume), "dit") if self.args.resume else ({}, {})
        if tensors:
            fill(transformer, tensors, "transformer")
            fill(text, tensors, "text_encoder")
        trainer = Trainer(s, transformer, text, self.vae_model, self.ranks)
        if state_path.exists():
            trainer.restore(torch.load(state_path, map_location=self.device, weights_only=False))
            print(f"full state resumed at step {trainer.steps}", flush=True)
        elif tensors:
            trainer.steps, trainer.seconds = info["steps"], info["seconds"]
            trainer.history = [tuple(row) for row in info["history"]]
            print(f"weights resumed at step {trainer.steps}", flush=True)
        # Another run, other clips and noise.
        torch.manual_seed(self.settings.seed + 11 + trainer.steps + 100_003 * self.ranks.rank)
        if self.device == "cuda" or self.args.compile:
            # One compiled block serves all layers and grids.
            transformer.compile_repeated_blocks(dynamic=True)
        return trainer

    def save(self, trainer: Trainer, *, full: bool = False) -> None:
        """Write the averaged weights to OUT and, if asked, everything to the work folder."""
        if not self.ranks.first:
            return
        info = {"steps": trainer.steps, "seconds": trainer.seconds, "history": trainer.history}
        save_shards(dict(trainer.average.shadow), self.out, "dit", info)
        self.log["dit"] = info
        save_json(self.out / "log.json", self.log)
        if full:
            torch.save(trainer.state(), self.work / "state.pt")
        print(f"saved at step {trainer.steps}, {self.left():.0f} s left", flush=True)

    def finish(self, trainer: Trainer) -> None:
        """Generate with the averaged weights: content check and contact sheets."""
        s = self.settings
        torch.backends.cudnn.benchmark = False
        trainer.average.swap()
        for block in trainer.transformer.blocks:
            # Sampling would compile again for every shape.
            block._compiled_call_impl = None
        vae = build_vae(s.vae_base).to(self.device).eval()
        vae.load_state_dict(self.vae_model.state_dict())
        vae.register_to_config(**self.log["vae"]["stats"])
        pipe = ready(build_pipeline(vae, trainer.text_encoder, trainer.transformer))

        def score() -> None:
            result = check(pipe, s, s.grid("cpu"), s.check_clips, self.out / "samples-cpu.png")
            self.log["check"] = result
            print(f"content check: {result}", flush=True)

        def large() -> None:
            from vidsparse.models.content import held_out_captions

            prompts = [str(c) for c in held_out_captions(4, s.seed + 5)]
            clips, titles = [], []
            for name, batch in (("mini", 4), ("gpu", 4), ("gpu-large", 1)):
                if self.left() < 15 and not self.args.smoke:
                    break
                some = prompts if name != "gpu-large" else prompts[:2]
                clips += [c[:, :, :] for c in sample(pipe, some, s.grid(name), s, batch)]
                titles += [f"{name}: {prompt}" for prompt in some]
                contact_sheet(clips, titles, self.out / "samples-grids.png")

        self.attempt("content check", score)
        save_json(self.out / "log.json", self.log)
        self.attempt("large grids", large)
        trainer.average.swap()
        save_json(self.out / "log.json", self.log)

    def main(self) -> None:
        """Do all of it within the budget."""
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        # A kernel that can't be compiled must not cost the run; many shapes are expected.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.suppress_errors = not self.args.smoke
        print(f"device {self.device}, torch {torch.__version__}", flush=True)
        self.vae()
        trainer = self.trainer()
        # Ranks start at different moments; they must stop at the same step.
        seconds = self.ranks.agree(int(self.left() - self.args.reserve))
        print(f"training the transformer for {seconds} s", flush=True)
        trainer.train(RUNS[self.args.run], seconds, self.save)
        self.save(trainer, full=True)
        trainer.pools.clear()
        self.ranks.close()
        if not self.ranks.first:
            return
        self.finish(trainer)
        print(f"done, {self.left():.0f} s left", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=sorted(RUNS), default="first")
    parser.add_argument("--minutes", type=float, default=8.5, help="wall clock of this call")
    parser.add_argument("--vae-minutes", type=float, default=2.4)
    parser.add_argument("--reserve", type=float, default=50.0, help="seconds for the pictures")
    parser.add_argument("--out", required=True, help="what should travel back")
    parser.add_argument("--work", default="/tmp/vidsparse-train", help="full state stays here")
    parser.add_argument("--resume", default="", help="an earlier run's OUT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay-from", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--compile", action="store_true", help="compile on a CPU too")
    parser.add_argument("--smoke", action="store_true", help="minuscule sizes, to test the script")
    return parser.parse_args()


if __name__ == "__main__":
    Run(parse()).main()
