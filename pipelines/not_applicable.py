"""Video transformers of diffusers that sparse attention does not apply to, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NotApplicable:
    """A transformer class that is refused for good.

    Attributes:
        family: short name, as of the families that are supported.
        pipelines: class names of its pipelines.
        why: half a sentence for an error message.
    """

    family: str
    pipelines: tuple[str, ...]
    why: str


_BLOCK_SPARSE = "its attention is block-sparse by training already"

NOT_APPLICABLE = {
    "LatteTransformer3DModel": NotApplicable(
        "latte",
        ("LattePipeline",),
        "it attends inside one frame or along one pixel, never to the whole video",
    ),
    "SanaVideoTransformer3DModel": NotApplicable(
        "sana_video",
        ("SanaVideoPipeline", "SanaImageToVideoPipeline"),
        "its attention is linear in the number of tokens, there are no scores to skip",
    ),
    "SanaWMTransformer3DModel": NotApplicable(
        "sana_wm",
        ("SanaWMPipeline",),
        "three of four of its blocks use linear attention, and its softmax blocks have no "
        "processor to attach to",
    ),
    "AnyFlowFARTransformer3DModel": NotApplicable(
        "anyflow_far",
        ("AnyFlowFARPipeline",),
        "each chunk attends to cached chunks through a block mask of its own",
    ),
    "WanAnimate2Transformer3DModel": NotApplicable(
        "wan_animate_2",
        ("WanAnimate2ModularPipeline", "WanAnimate2DistilledModularPipeline"),
        "it packs cached reference tokens and attends through a block mask of its own",
    ),
    "Kandinsky6SRTransformer3DModel": NotApplicable(
        "kandinsky6_sr", ("Kandinsky6SRPipeline",), _BLOCK_SPARSE
    ),
}
