import shutil

import pytest
import torch
from pack import check_sizes

from vidsparse import models
from vidsparse.generate import Sampling, sample
from vidsparse.loading import has_weights, load_pipeline, pick_dtype
from vidsparse.models import precision

CPU = torch.device("cpu")
SMALL = Sampling(height=32, width=32, num_frames=5, steps=2, guidance=4.0)
PROMPT = "a red circle moves right over green stripes"
shipped = pytest.mark.skipif(not has_weights("tiny"), reason="this checkout holds no weights")


@pytest.mark.usefixtures("untrained")
def test_same_seed_same_video():
    pipe = models.load("tiny", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    first, again, other = (sample(pipe, PROMPT, SMALL, seed=seed).video for seed in (1, 1, 2))
    assert first.shape == (5, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, sample(pipe, "a blue star", SMALL, seed=1).video)


@pytest.mark.usefixtures("untrained")
def test_dtype_is_what_was_asked_for_else_the_fastest():
    assert load_pipeline("tiny", device=CPU, dtype=torch.float32).vae.dtype == torch.float32
    pipe = models.load("tiny")
    assert pipe.vae.dtype == pipe.text_encoder.dtype == precision.default_dtype("cpu")


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_takes_bfloat16_only_if_it_computes_in_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_dtype("auto", CPU) == dtype
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("float32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize("lost", ["model_index.json", "vae/config.json", "text_encoder/"])
def test_missing_weights_are_named(untrained, tmp_path, monkeypatch, lost):
    shutil.copytree(untrained / "tiny", tmp_path / "tiny")
    for path in (tmp_path / "tiny").glob(f"{lost}*.safetensors" if lost[-1] == "/" else lost):
        path.unlink()
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'tiny' are missing: .* has no {lost}.*train"):
        models.load("tiny")
    assert not has_weights("tiny")


def test_prompt_without_a_known_word_is_warned_of():
    warning = models.caption_warning("tiny", "un chat")
    assert "knows no word of 'un chat'" in warning
    assert all(word in warning for word in ("red", "circle", "moves", "right"))
    assert models.caption_warning("tiny", "un chat RED") is None


def test_untrained_grid_is_warned_of():
    assert models.grid_warning("tiny", 128, 128, 33) is None
    assert "not trained for 160x64 with 9 frames; its grids are cpu (128x128, 33 frames)" in (
        models.grid_warning("tiny", 64, 160, 9)
    )


@shipped
def test_shipped_weights_are_small_enough():
    assert check_sizes(models.path("tiny")) > 1_000_000


@shipped
def test_shipped_model_generates():
    pipe = load_pipeline("tiny", device=CPU, dtype=precision.default_dtype("cpu"))
    first, again = (sample(pipe, PROMPT, SMALL, seed=0).video for _ in range(2))
    assert torch.equal(first, again)
    assert float(first.std()) > 0.02
