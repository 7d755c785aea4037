"""Dense clips that candidates are measured against, in memory or in a folder."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsparse.clips import Scene
from vidsparse.files import replacing


@dataclass(frozen=True)
class Reference:
    """A dense clip.

    Attributes:
        frames: (F, H, W, 3) uint8.
        latents: float32 latents by the number of steps done.
    """

    frames: Any
    latents: dict[int, Tensor]


@dataclass
class References:
    """Dense clips by scene.

    Attributes:
        folder: where they are kept for a later process; None keeps them in memory only.
    """

    folder: Path | None = None
    _found: dict[Scene, Reference] = field(default_factory=dict)

    def keep(self, scene: Scene, reference: Reference) -> None:
        """Keep the dense clip of a scene."""
        self._found[scene] = reference
        if self.folder is None:
            return
        from safetensors.torch import save_file

        tensors = {str(step): latents for step, latents in reference.latents.items()}
        frames = torch.from_numpy(reference.frames)
        with replacing(_file(self.folder, scene)) as temporary:
            save_file({"frames": frames, **tensors}, temporary)

    def find(self, scene: Scene) -> Reference | None:
        """Return the dense clip of a scene; None when there is none yet, or its file is torn."""
        if scene in self._found or self.folder is None or not _file(self.folder, scene).is_file():
            return self._found.get(scene)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(_file(self.folder, scene))
        except SafetensorError:
            return None
        frames = tensors.pop("frames").numpy()
        latents = {int(step): value for step, value in tensors.items()}
        self._found[scene] = Reference(frames, latents)
        return self._found[scene]


def _file(folder: Path, scene: Scene) -> Path:
    name = sha256(f"{scene.seed} {scene.prompt}".encode()).hexdigest()[:16]
    return folder / f"dense-{name}.safetensors"
