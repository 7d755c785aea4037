from dataclasses import replace

import pytest

import vidsparse
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.fingerprint import differences, model_of
from vidsparse.pipelines import testing
from vidsparse.preset_parts import ModelId
from vidsparse.request import SparseRequest


@pytest.fixture(scope="module")
def wan():
    return testing.wan()


def test_a_model_matches_itself_and_its_bare_transformer(wan):
    found = model_of(wan.pipe)
    assert found.pipeline == "WanPipeline"
    assert found.transformers["transformer"]["class"] == "WanTransformer3DModel"
    assert found.transformers["transformer"]["patch_size"] == [1, 2, 2]
    assert not differences(found, model_of(testing.wan().pipe))
    assert not differences(found, model_of(wan.pipe.transformer))


def test_another_depth_and_a_missing_expert_are_named(wan):
    two = model_of(testing.wan(experts=2, layers=3).pipe)
    assert differences(two, model_of(wan.pipe)) == [
        "transformer's num_layers is 3 in the preset and 2 here",
        "it has transformer_2 and this model has none",
    ]
    assert not differences(
        ModelId(transformers={"transformer": {"num_layers": 2}}), model_of(wan.pipe)
    )


def test_preset_of_another_model_is_refused_unless_forced(wan, tmp_path):
    file = tmp_path / "other.toml"
    model = {"transformers": {"transformer": {"class": "HunyuanVideoTransformer3DModel"}}}
    SparseConfig(method="random", model=model).save(file)
    message = "class is HunyuanVideoTransformer3DModel in the preset and WanTransformer3DModel here"
    with pytest.raises(UsageError, match=message):
        vidsparse.enable(wan.pipe, preset=file)
    with vidsparse.enabled(wan.pipe, preset=file, force=True) as handle:
        assert handle.method.name == "random"


def test_published_presets_refuse_the_tiny_model(wan):
    with pytest.raises(UsageError, match="num_layers is 40 in the preset and 2 here"):
        vidsparse.enable(wan.pipe, preset="svg-wan-t2v-720p")


def test_command_line_request_can_be_forced(wan):
    request = SparseRequest("x", None, preset="svg-wan-t2v-720p")
    with pytest.raises(UsageError, match="--force"):
        request.enable(wan.pipe)
    replace(request, force=True).enable(wan.pipe).disable()


def test_warm_up_of_a_request_keeps_nothing_dense(wan):
    request = SparseRequest("x", None, preset="draft-wan-t2v-768p", force=True)
    with request.enable(wan.pipe, all_sparse=True) as handle:
        assert (handle.schedule.dense_steps, handle.schedule.dense_layers) == (0, 0)
        assert handle.schedule.dense_above_sigma == 1
