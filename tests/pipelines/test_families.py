"""What holds for all families together: names, listing, and what is refused."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from vidsparse.config import SparseConfig, preset_names
from vidsparse.errors import UnsupportedPipelineError, UsageError
from vidsparse.pipelines import testing, testing_more
from vidsparse.pipelines.attach import attach
from vidsparse.pipelines.base import ModelFamily, available_families
from vidsparse.pipelines.listing import transformer_rows
from vidsparse.pipelines.not_applicable import NOT_APPLICABLE
from vidsparse.profiling.check_families import is_right

FAMILIES = available_families()
ROOT = Path(__file__).resolve().parent.parent.parent


def test_forty_pipelines_of_diffusers_are_supported() -> None:
    names = [name for family in FAMILIES.values() for name in family.pipelines]
    assert len(names) == len(set(names)) >= 40
    assert all(hasattr(diffusers, name) for name in names)


def test_pipelines_that_are_refused_exist() -> None:
    names = [name for entry in NOT_APPLICABLE.values() for name in entry.pipelines]
    assert all(hasattr(diffusers, name) for name in (*names, *NOT_APPLICABLE))
    supported = {name for family in FAMILIES.values() for name in family.models}
    assert supported.isdisjoint(NOT_APPLICABLE)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_family_knows_its_transformers_arguments(family: ModelFamily) -> None:
    known: set[str] = set()
    for name in family.models:
        parameters = [*inspect.signature(getattr(diffusers, name).forward).parameters][1:]
        known |= set(parameters)
        assert set(family.reads) <= set(parameters)
    assert set(family.arguments) == known


def test_listing_names_files_and_presets_that_exist() -> None:
    rows = [row for row in transformer_rows() if row["status"] == "supported"]
    assert len(rows) >= 20
    for row in rows:
        assert row["preset"] in (None, *preset_names())
        if row["preset"]:
            model = SparseConfig.load(row["preset"]).model
            assert model is not None
            assert model.transformers["transformer"]["class"] in FAMILIES[row["family"]].models
        assert (ROOT / row["evidence"]["dense equal"]).is_file()
        assert (ROOT / row["evidence"]["sparse"]).is_file()
        assert row["head_sizes"]
        assert row["sparsified"]
        assert row["text"]


def test_listing_says_what_ran_on_a_gpu_by_transformer(tmp_path: Path) -> None:
    run = {
        "device": "NVIDIA H200", "pipeline": "WanVACEPipeline", "heads": 4, "tokens": 32760,
        "head_size": 128, "dense_equal": True, "sparse_finite": True, "density": 0.5,
        "commit": "abc",
    }  # fmt: skip
    row = {**run, "case": "wan_vace", "transformer": "WanVACETransformer3DModel"}
    (tmp_path / "families-h200.json").write_text(json.dumps({"meta": {}, "rows": [row]}))
    rows = {row["transformer"]: row for row in transformer_rows(tmp_path)}
    assert rows["WanVACETransformer3DModel"]["evidence"]["gpu"] == [run]
    assert rows["WanTransformer3DModel"]["evidence"]["gpu"] == []
    assert "evidence" not in rows["LatteTransformer3DModel"]


def test_what_is_kept_of_gpu_runs_is_right_and_of_transformers_that_exist() -> None:
    files = list((ROOT / "profiling" / "results").glob("families-*.json"))
    runs = [run for file in files for run in json.loads(file.read_text())["rows"]]
    assert {run["transformer"] for run in runs} <= {
        name for f in FAMILIES.values() for name in f.models
    }
    assert all(is_right(run) for run in runs)


def test_inapplicable_transformer_is_refused_with_the_reason(spy: Any) -> None:
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=4,
        num_layers=1,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=4,
        caption_channels=4,
        sample_size=4,
        patch_size=2,
    )
    with pytest.raises(
        UnsupportedPipelineError, match=r"gains nothing .* never to the whole video"
    ) as error:
        attach(transformer, spy)
    assert len(str(error.value).splitlines()) == 1


def test_unknown_transformer_is_told_what_is_supported_and_how_to_add_it(spy: Any) -> None:
    with pytest.raises(UnsupportedPipelineError) as error:
        attach(torch.nn.Linear(2, 2), spy)
    for part in ("Linear is not supported", "MotifVideoTransformer3DModel", "vidsparse models"):
        assert part in str(error.value)
    file = re.search(r"one file like vidsparse/(\S+) with a ModelFamily", str(error.value))
    assert file is not None
    assert (ROOT / file[1]).is_file()


def named(base: type, **members: Any) -> type:
    """Return a subclass that is called as a later diffusers might call its own."""
    return type(base.__name__, (base,), members)


def test_changed_forward_names_class_and_version(spy: Any) -> None:
    def forward(self: Any, latents: Any, timestep: Any) -> None:
        raise NotImplementedError

    transformer = testing.wan_transformer()
    transformer.__class__ = named(type(transformer), forward=forward)
    version = re.escape(diffusers.__version__)
    with pytest.raises(
        UnsupportedPipelineError,
        match=rf"WanTransformer3DModel of diffusers {version} .* no argument hidden_states",
    ):
        attach(transformer, spy)
    assert not transformer._forward_pre_hooks


def test_changed_blocks_name_class_and_version(spy: Any) -> None:
    transformer = testing_more.allegro().pipe.transformer
    del transformer.transformer_blocks[1].attn1
    version = re.escape(diffusers.__version__)
    with pytest.raises(
        UnsupportedPipelineError,
        match=rf"AllegroTransformer3DModel of diffusers {version} .* no attribute 'attn1'",
    ):
        attach(transformer, spy)


def test_argument_nobody_knows_is_refused_when_it_is_given(spy: Any) -> None:
    base = diffusers.WanTransformer3DModel

    def forward(self: Any, hidden_states: Any, timestep: Any, extra_tokens: Any = None) -> Any:
        text = torch.zeros(1, 16, 32)
        return base.forward(self, hidden_states, timestep, text)

    transformer = testing.wan_transformer()
    transformer.__class__ = named(base, forward=forward)
    attachment = attach(transformer, spy)
    inputs = torch.zeros(1, 16, 3, 4, 4), torch.tensor([900.0])
    with torch.no_grad():
        transformer(*inputs)
        with pytest.raises(UsageError, match="'extra_tokens', which vidsparse does not know"):
            transformer(*inputs, extra_tokens=torch.zeros(1))
    attachment.detach()
    assert len(spy.sites) == 2
