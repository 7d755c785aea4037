"""Generate one video with sparse attention: the bundled model, or a diffusers folder.

python examples/wrap_pipeline.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import vidsparse
from vidsparse import models
from vidsparse.video import write_video


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else models.path("tiny")
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    with vidsparse.enabled(pipe, method="svg", density=0.4) as handle:
        result = pipe(
            "a small red circle moves right over drifting green stripes",
            height=128,
            width=128,
            num_frames=33,
            num_inference_steps=20,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
    # What was sparse, what stayed dense and why.
    print(handle.summary())
    write_video(Path("wrapped.mp4"), result.frames[0])


if __name__ == "__main__":
    main()
