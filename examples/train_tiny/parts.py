"""Build the pipeline's parts: tokenizer, text encoder, VAE, transformer, scheduler."""

import math
from types import MethodType

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from vidsparse.models.grammar import WORDS

FLOW_SHIFT = 4.0
TEXT_TOKENS = 512  # WanPipeline pads its text to this length with zero vectors
LATENT_CHANNELS = 32
PIXELS = 8  # pixels of one latent in height and width


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer that drops every word it doesn't know."""
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for word in WORDS:
        vocab.setdefault(word, len(vocab))
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\w]+"), " "),
            normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(WORDS)})\b)\w+"), " "),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_text_encoder(width: int = 128) -> UMT5EncoderModel:
    """Build the small UMT5 encoder, without dropout."""
    config = UMT5Config(
        vocab_size=3 + len(WORDS),
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    encoder = UMT5EncoderModel(config)
    # Word vectors of unit size double as an identity that the attention can bind to neighbours.
    nn.init.normal_(encoder.shared.weight, std=1.0)
    return encoder.eval()


def build_vae(base: int = 32, blocks: int = 1) -> AutoencoderKLWan:
    """Build Wan 2.2's VAE small: 8 x 8 pixels and 4 frames to one latent of 32 channels."""
    vae = AutoencoderKLWan(
        # The decoder has the harder work, and all weights together must stay under 40 MB.
        base_dim=base * 3 // 4,
        decoder_base_dim=base,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=blocks,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_temporal=4,
        scale_factor_spatial=PIXELS,
    )
    _start_near_identity(vae)
    return vae


@torch.no_grad()
def _start_near_identity(vae: AutoencoderKLWan) -> None:
    """Begin as block averages passed through, with little noise; the rest is then learnt.

    From diffusers' own initial values the colours alone take a thousand steps.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        if name.endswith(("conv2", "time_conv", "proj")) or ".resample." in name:
            # Residual branches start at zero: only the shortcuts speak.
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif name.endswith("conv_shortcut"):
            nn.init.orthogonal_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
        elif name.endswith(("conv_in", "conv_out")):
            centre = nn.init.orthogonal_(torch.empty(module.weight.shape[:2]))
            module.weight.mul_(0.3)
            module.weight[:, :, 2, 1, 1] += centre
            if name.endswith("conv_in"):
                # RMS norms keep a vector's direction only; the bias makes brightness part of it.
                nn.init.normal_(module.bias, std=0.5)
    for module in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(module.weight)
        nn.init.zeros_(module.bias)
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0.0
    vae.quant_conv.bias[LATENT_CHANNELS:] = -5.0


def build_transformer(heads: int = 6, layers: int = 8, ffn: int = 1024) -> WanTransformer3DModel:
    """Build the transformer with Wan's initial values: head size 64, a token for each latent."""
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=128,
        freq_dim=256,
        ffn_dim=ffn,
        num_layers=layers,
        cross_attn_norm=True,
        rope_max_seq_len=256,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    nn.init.zeros_(model.patch_embedding.bias)
    for part in (model.condition_embedder.time_embedder, model.condition_embedder.text_embedder):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.02)
    nn.init.zeros_(model.proj_out.weight)
    return model


def build_scheduler() -> UniPCMultistepScheduler:
    """Build Wan's sampler."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )


def build_pipeline(
    vae: AutoencoderKLWan, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel
) -> WanPipeline:
    """Join the parts."""
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=build_scheduler(),
        transformer=transformer,
    )


def _resample_whole_clip(self: WanResample, x: Tensor, *_: object, **__: object) -> Tensor:
    """Do in one piece what WanResample does chunk by chunk with its feature cache."""
    B, C, _T, H, W = x.shape
    if self.mode == "upsample3d" and x.shape[2] > 1:
        # The first frame is not doubled, and the others don't see it.
        later = self.time_conv(x[:, :, 1:]).view(B, 2, C, -1, H, W)
        later = torch.stack((later[:, 0], later[:, 1]), 3).reshape(B, C, -1, H, W)
        x = torch.cat([x[:, :, :1], later], 2)
    T = x.shape[2]
    x = self.resample(x.permute(0, 2, 1, 3, 4).reshape(B * T, C, H, W))
    x = x.view(B, T, *x.shape[1:]).permute(0, 2, 1, 3, 4)
    if self.mode == "downsample3d" and T > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


def whole_clip(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let the VAE's encoder and decoder take clips whole; same results, far fewer launches."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = MethodType(_resample_whole_clip, module)
    return vae


def chunked(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Undo `whole_clip`."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.__dict__.pop("forward", None)
    return vae


def encode_moments(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Encode whole clips (B, 3, F, H, W) in [-1, 1] to mean and log variance."""
    video = patchify(video, vae.config.patch_size)
    mean, logvar = vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode whole clips to (B, 3, F, H, W), not clamped."""
    out = vae.decoder(vae.post_quant_conv(latents), first_chunk=True)
    return unpatchify(out, vae.config.patch_size)


def pad_text(states: Tensor, mask: Tensor) -> Tensor:
    """Zero the padding and extend (B, L, C) to the pipeline's 512 positions."""
    states = states * mask.unsqueeze(-1)
    return nn.functional.pad(states, (0, 0, 0, TEXT_TOKENS - states.shape[1]))


def tokens_of(latent_shape: tuple[int, ...]) -> int:
    """Count the transformer's tokens of a latent (..., F, H, W)."""
    return math.prod(latent_shape[-3:])
