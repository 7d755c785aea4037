"""LTX-Video: video tokens only, already packed when they reach the transformer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.memo import TensorMemo


def _from_coordinates(coordinates: Tensor) -> VideoLayout:
    """Recover the grid from (B, 3, S) coordinates: frame, row, column of each token."""
    points = coordinates[0].detach().cpu()
    # The video begins at the last token that is first in all three axes.
    at_origin = (points == points.amin(dim=1, keepdim=True)).all(dim=0)
    start = int(at_origin.nonzero()[-1]) if at_origin.any() else 0
    frames, height, width = (len(axis[start:].unique()) for axis in points)
    if frames * height * width != points.shape[1] - start:
        raise UnsupportedPipelineError(
            f"the {points.shape[1]} tokens of this LTX pipeline are no grid of frames behind its "
            "condition tokens; run it without sparse attention"
        )
    return VideoLayout(frames=frames, height=height, width=width, text_before=start)


@register
class LTXVideoFamily(ModelFamily):
    """The grid comes as numbers, or as coordinates of each token in the pipelines with conditions.

    Tokens of condition frames stand in front of the video; they are kept as text is.
    """

    name = "ltx_video"
    models: ClassVar[Models] = {
        "LTXVideoTransformer3DModel": (
            "LTXPipeline",
            "LTXImageToVideoPipeline",
            "LTXConditionPipeline",
            "LTXI2VLongMultiPromptPipeline",
        )
    }
    arguments = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "num_frames",
        "height",
        "width",
        "rope_interpolation_scale",
        "video_coords",
        "attention_kwargs",
        "return_dict",
    )
    reads = ("hidden_states", "timestep", "num_frames", "height", "width")
    card = FamilyCard(
        sparsified="attn1 of every block; condition tokens are kept",
        text="none; condition tokens before",
        head_sizes=(64, 128),
    )

    def __init__(self) -> None:
        self._from_coordinates = TensorMemo(_from_coordinates)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid given with ``hidden_states`` (B, S, C)."""
        coordinates = inputs.get("video_coords")
        if coordinates is not None:
            return self._from_coordinates(coordinates)
        return VideoLayout(
            frames=inputs["num_frames"], height=inputs["height"], width=inputs["width"]
        )
