"""LTX-Video: video tokens only, already packed when they reach the transformer."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.base import FamilyCard, ModelFamily, Models, register
from vidsparse.pipelines.memo import TensorMemo


def _videos_in(coordinates: Tensor) -> list[VideoLayout]:
    """Find the videos in (B, 3, S) coordinates of tokens: frame, row, column.

    Returns:
        A layout per run of equal frames with rising times, in order of their tokens.
    """
    points = coordinates[0].detach().cpu()
    starts, lengths = _same_time(points[0])
    size = int(lengths.mode().values)
    height, width = (len(points[axis, starts[-1] :].unique()) for axis in (1, 2))
    if height * width != size or int(lengths[-1]) != size:
        raise UnsupportedPipelineError(
            f"the {points.shape[1]} tokens of this LTX pipeline are no grid of frames beside its "
            "condition tokens; run it without sparse attention"
        )
    times = points[0, starts]
    # A run ends where time stands or falls, and where frames have another size.
    ends = (times[1:] <= times[:-1]) | (lengths[1:] != lengths[:-1])
    borders = [0, *(ends.nonzero().flatten() + 1).tolist(), len(starts)]
    return [
        VideoLayout(
            frames=last - first,
            height=height,
            width=width,
            text_before=int(starts[first]),
            text_after=points.shape[1] - int(starts[first]) - (last - first) * size,
        )
        for first, last in pairwise(borders)
        if int(lengths[first]) == size
    ]


def _same_time(times: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each stretch of equal times starts, and how long it is."""
    _, lengths = times.unique_consecutive(return_counts=True)
    return lengths.cumsum(0) - lengths, lengths


@register
class LTXVideoFamily(ModelFamily):
    """The grid comes as numbers, or as coordinates of each token in the pipelines with conditions.

    Tokens of condition frames stand in front of the video, those of a window's neighbours behind
    it; both are kept as text is.
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
        text="none; condition tokens before or after",
        head_sizes=(64, 128),
    )

    def __init__(self) -> None:
        self._videos_in = TensorMemo(_videos_in)

    def self_attentions(self, transformer: Any) -> list[nn.Module]:
        """Return ``attn1`` of each block."""
        return [block.attn1 for block in transformer.transformer_blocks]

    def layout(self, transformer: Any, inputs: Mapping[str, Any]) -> VideoLayout:
        """Return the grid given with ``hidden_states`` (B, S, C)."""
        coordinates = inputs.get("video_coords")
        if coordinates is None:
            return VideoLayout(inputs["num_frames"], inputs["height"], inputs["width"])
        videos = self._videos_in(coordinates)
        # Of equally long ones the video is the last behind conditions, the first in a window,
        # whose pipeline says 1 for all sizes.
        window = inputs.get("num_frames") is not None
        return max(videos if window else reversed(videos), key=lambda video: video.frames)
