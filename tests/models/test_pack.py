import json
import re

import pytest
import torch
from pack import TOTAL_BYTES, check_registry, check_reload, check_sizes, read_settings, thin, write
from parts import build_text_encoder, build_transformer, build_vae
from safetensors.torch import load_file, save_file
from settings import Settings, small

from vidsparse import models


def test_packed_folder_reloads_bit_for_bit(random_pipe, packed):
    check_reload(random_pipe, packed / "tiny")


def test_changed_weight_is_caught(random_pipe, tmp_path):
    write(random_pipe, tmp_path)
    path = next((tmp_path / "vae").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"vae: 1 tensors changed, first {name}"):
        check_reload(random_pipe, tmp_path)


def test_lost_shard_is_named(random_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("pack.SHARD_SIZE", "100KB")
    write(random_pipe, tmp_path / "tiny")
    shards = sorted((tmp_path / "tiny" / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    check_reload(random_pipe, tmp_path / "tiny")
    shards[-1].unlink()
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"has no transformer/{shards[-1].name}")):
        models.path("tiny")


def test_too_large_files_are_refused(packed, monkeypatch):
    packed = packed / "tiny"
    total = check_sizes(packed)
    assert 100_000 < total < 10_000_000
    monkeypatch.setattr("pack.FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="bytes in all, at most 40000000; files of 1000"):
        check_sizes(packed)


def test_model_that_is_trained_is_small_enough_to_ship():
    s = Settings()
    parts = (build_vae(s.vae_base), build_text_encoder())
    parts = (*parts, build_transformer(s.heads, s.layers, s.ffn))
    weights = sum(p.numel() * 2 for part in parts for p in part.parameters())
    # Headers, configs and the tokenizer take 0.1 MB.
    assert weights < TOTAL_BYTES - 100_000


def test_tokenizer_is_saved_under_a_name_that_all_versions_know(packed):
    index = json.loads((packed / "tiny" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]


def test_registry_must_agree_with_training():
    from dataclasses import asdict, replace

    card = models.info("tiny")
    settings = read_settings({"settings": {**asdict(Settings()), "of a later version": 1}})
    check_registry(settings, card, set(card.grids))
    with pytest.raises(ValueError, match="never trained on gpu-large"):
        check_registry(settings, card, {"cpu", "gpu"})
    with pytest.raises(ValueError, match="grid cpu: the registry says"):
        check_registry(small(settings), card, set(card.grids))
    with pytest.raises(ValueError, match=r"guidance 1\.5"):
        check_registry(replace(settings, guidance=1.5), card, set(card.grids))


def test_thinned_curve_keeps_its_end():
    rows = [[step, torch.pi * step] for step in range(1000)]
    thinned = thin(rows)
    assert len(thinned) <= 80
    assert thinned[-1] == [999, 3138.0]
