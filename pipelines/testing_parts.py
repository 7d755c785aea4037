"""Parts of tiny pipelines: tokenizers and text encoders that need no download."""

import string
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor

_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline with random weights and the arguments of a call that takes a second.

    Attributes:
        pipe: the pipeline, on the CPU in float32.
        inputs: keyword arguments of its call, without steps, seed and output type.
        takes_steps: whether its call has ``num_inference_steps``.
    """

    pipe: Any
    inputs: dict[str, Any]
    takes_steps: bool = True

    def generate(
        self, *, steps: int = 2, seed: int = 0, changes: dict[str, Any] | None = None
    ) -> Tensor:
        """Run it: the frames, (videos, F, C, H, W) in [0, 1].

        Args:
            steps: denoising steps.
            seed: of the initial noise.
            changes: arguments that replace or join ``inputs``.
        """
        arguments = {"output_type": "pt", **self.inputs, **(changes or {})}
        if self.takes_steps:
            arguments["num_inference_steps"] = steps
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            frames: Tensor | list[Tensor] = self.pipe(**arguments, generator=generator)[0]
        # Pipelines that go by sections return the latents of each.
        return frames if isinstance(frames, Tensor) else torch.cat([x.flatten() for x in frames])

    def latents(
        self, *, steps: int = 2, seed: int = 0, changes: dict[str, Any] | None = None
    ) -> Tensor:
        """Do as ``generate`` without decoding: the pipeline's latents."""
        changes = {**(changes or {}), "output_type": "latent"}
        return self.generate(steps=steps, seed=seed, changes=changes)


def t5_tokenizer() -> Any:
    """Build a T5 tokenizer of single characters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(c, -3.0) for c in _CHARACTERS]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0)


def t5_encoder(kind: str = "T5") -> Any:
    """Build a text encoder of width 32; ``kind`` is T5 or UMT5."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip_tokenizer() -> Any:
    """Build a CLIP tokenizer of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        "<|startoftext|>",
        "!pad",
        "<|endoftext|>",
        *alphabet,
        *(f"{a}</w>" for a in alphabet),
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def clip_encoder() -> Any:
    """Build a CLIP text encoder of width 8."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=1000,
        hidden_size=8,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        projection_dim=32,
    )
    return transformers.CLIPTextModel(config).eval()


def llama_tokenizer() -> Any:
    """Build a Llama tokenizer of single characters."""
    tokens = ["<unk>", "<s>", "</s>", "<pad>", "▁", *_CHARACTERS]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.LlamaTokenizer(vocab=vocab, merges=[], pad_token="<pad>")


def llama_encoder() -> Any:
    """Build a Llama model of width 16."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return transformers.LlamaModel(config).eval()


def tiny_pipeline(pipe: Any, **inputs: Any) -> TinyPipeline:
    """Join a pipeline with the arguments every one takes."""
    pipe.set_progress_bar_config(disable=True)
    common = {"prompt": "dance monkey", "height": 32, "width": 32, "max_sequence_length": 16}
    return TinyPipeline(pipe, {**common, **inputs})


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal noise, for text embeddings in the place of a text encoder."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(size: int = 32) -> Image.Image:
    """Return a square RGB picture of noise."""
    pixels = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def siglip() -> dict[str, Any]:
    """Build an image encoder of width 16 that makes 16 tokens, and its image processor."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return {
        "image_encoder": transformers.SiglipVisionModel(config).eval(),
        "feature_extractor": processor,
    }


def clip_vision() -> dict[str, Any]:
    """Build an image encoder of width 4 that makes 5 tokens, and its image processor."""
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4,
        patch_size=2,
        projection_dim=4,
    )
    return {
        "image_encoder": transformers.CLIPVisionModelWithProjection(config).eval(),
        "image_processor": transformers.CLIPImageProcessor(size=4, crop_size=4),
    }
