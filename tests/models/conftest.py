import sys
from dataclasses import replace
from pathlib import Path

# The generator is an example, not part of the package.
sys.path.append(str(Path(__file__).parents[2] / "examples" / "train_tiny"))

import pytest
import torch
from pack import write
from parts import build_pipeline, build_text_encoder, build_transformer, build_vae

from vidsparse import models


@pytest.fixture(scope="session")
def random_pipe():
    """The bundled model's parts, small and untrained, with weights that fit in bfloat16."""
    torch.manual_seed(0)
    parts = [build_vae(8), build_text_encoder(), build_transformer(heads=2, layers=2, ffn=64)]
    # Wan's output layer starts at zero, which would hide everything before it.
    torch.nn.init.normal_(parts[2].proj_out.weight, std=0.05)
    for tensor in (p.data for part in parts for p in part.parameters()):
        tensor.copy_(tensor.bfloat16())
    return build_pipeline(*(part.eval() for part in parts))


@pytest.fixture(scope="session")
def packed(random_pipe, tmp_path_factory):
    """A folder that stands in for ``vidsparse/models``: it holds an untrained ``tiny``."""
    folder = tmp_path_factory.mktemp("models")
    write(random_pipe, folder / "tiny")
    return folder


@pytest.fixture
def untrained(packed, monkeypatch):
    """Let the registry find the untrained weights; returns the models' folder."""
    monkeypatch.setattr(models, "_FOLDER", packed)
    return packed


@pytest.fixture
def small_card(monkeypatch):
    """Give ``tiny`` one small grid that a CPU attends to in an instant."""
    grid = models.Grid(128, 128, 17, 1280)
    card = replace(models.info("tiny"), grids={"cpu": grid}, steps=2)
    monkeypatch.setitem(models._MODELS, "tiny", card)
    return card
