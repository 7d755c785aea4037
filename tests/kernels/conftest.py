"""Inputs for the kernel tests."""

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A seeded generator on each device."""
    return torch.Generator(request.param).manual_seed(0)


@pytest.fixture
def gpu_generator() -> torch.Generator:
    """A seeded generator on the GPU."""
    return torch.Generator("cuda").manual_seed(0)
