import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vidsparse.config import PRESETS, SparseConfig, preset_names
from vidsparse.errors import UsageError


def test_saved_config_loads_equal(tmp_path: Path) -> None:
    config = SparseConfig(
        method="random", parameters={"density": 0.25}, dense_steps=3, dense_above_sigma=0.9
    )
    config.save(tmp_path / "mine.json")
    loaded = SparseConfig.load(tmp_path / "mine.json")
    assert loaded == config
    assert isinstance(loaded.dense_steps, int)


def test_share_of_one_stays_a_share(tmp_path: Path) -> None:
    SparseConfig(dense_steps=1.0).save(tmp_path / "all.json")
    assert isinstance(SparseConfig.load(tmp_path / "all.json").dense_steps, float)


def test_unknown_key_names_the_nearest_and_the_allowed_ones() -> None:
    near = r"unknown key 'dense_step'; did you mean 'dense_steps'\?; allowed are version, method"
    with pytest.raises(UsageError, match=near):
        SparseConfig(dense_step=0.3)
    with pytest.raises(UsageError, match=r"unknown key 'xyz'; allowed are"):
        SparseConfig(xyz=1)


def test_unknown_key_of_a_section_names_section_and_nearest() -> None:
    with pytest.raises(UsageError, match=r"cache: unknown key 'nam'; did you mean 'name'\?"):
        SparseConfig(cache={"nam": "first_block"})


def test_mistyped_parameter_names_the_nearest() -> None:
    config = SparseConfig(method="svg", parameters={"densty": 0.3})
    with pytest.raises(UsageError, match=r"no parameter 'densty'; did you mean 'density'\?"):
        config.build()


@pytest.mark.parametrize(("key", "value"), [("impl", "cuda"), ("precision", "9bit")])
def test_build_refuses_unknown_kernels_and_precisions(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {key} '{value}'; choose one of "):
        SparseConfig(**{key: value}).build()


@pytest.mark.parametrize(
    ("key", "value"), [("dense_steps", "0.2"), ("method", 3), ("parameters", [1]), ("impl", None)]
)
def test_wrong_type_is_one_line_with_key_and_value(key: str, value: object) -> None:
    with pytest.raises(UsageError) as error:
        SparseConfig(**{key: value})
    message = str(error.value)
    assert message.startswith(f"{key}={value!r}")
    assert "\n" not in message


def test_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"method": "svg", "steps": 2}))
    with pytest.raises(UsageError, match=r"bad\.json: unknown key 'steps'"):
        SparseConfig.load(file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bad.json", "{"),
        ("bad.json", "[]"),
        ("bad.json", '"svg"'),
        ("bad.json", "ÿ"),
        ("bad.toml", "method = svg"),
        ("bad.toml", "[["),
        ("bad.toml", "ÿ"),
    ],
)
def test_file_without_a_config_is_refused(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=name) as error:
        SparseConfig.load(file)
    assert "\n" not in str(error.value)


def test_missing_preset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'nope'; give a file's path or one of the presets"):
        SparseConfig.load("nope")
    with pytest.raises(UsageError, match="there is no preset file"):
        SparseConfig.load(tmp_path / "absent.json")


def test_name_resolves_in_the_presets_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidsparse.config.PRESETS", tmp_path)
    SparseConfig(method="oracle").save(tmp_path / "mine.json")
    assert preset_names() == ["mine"]
    assert SparseConfig.load("mine").method == "oracle"


def test_every_shipped_preset_loads_and_says_where_it_comes_from() -> None:
    assert list(PRESETS.glob("*.toml"))
    for name in preset_names():
        config = SparseConfig.load(name)
        assert config.note, f"{name} has no note"
        assert config.status != "own", f"{name} does not say whether it was measured"
        assert config.model is not None, f"{name} does not say for which model it is"


def test_unwritable_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*folder\.json: .*choose another folder"):
        SparseConfig().save(tmp_path / "file" / "folder.json")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    file = tmp_path / "no" / "such" / "folder.toml"
    SparseConfig(method="oracle").save(file)
    assert SparseConfig.load(file).method == "oracle"


def test_an_interrupt_while_saving_leaves_the_file_alone(
    tmp_path: Path, cut_off_writes: Callable[[], None]
) -> None:
    file = tmp_path / "mine.toml"
    SparseConfig(method="oracle").save(file)
    cut_off_writes()
    with pytest.raises(KeyboardInterrupt):
        SparseConfig(method="random").save(file)
    assert SparseConfig.load(file).method == "oracle"
    assert list(tmp_path.iterdir()) == [file]


def test_parameter_json_cannot_hold_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    SparseConfig().save(file)
    before = file.read_text()
    with pytest.raises(UsageError, match="cannot write preset"):
        SparseConfig(parameters={"order": object()}).save(file)
    assert file.read_text() == before


FULL = {
    "method": "draft",
    "parameters": {"window": [8, 8], "budget": "row", "second_moment": True},
    "dense_steps": 0,
    "dense_above_sigma": 0.9,
    "bands": [
        {"above_sigma": 0.5, "layers": [0.4, 0.2]},
        {"above_sigma": 0.0, "density": 0.25},
    ],
    "cache": {"name": "first_block", "parameters": {"threshold": 0.05}},
    "model": {
        "pipeline": "WanPipeline",
        "transformers": {
            "transformer": {"class": "WanTransformer3DModel", "patch_size": [1, 2, 2]},
            "transformer_2": {"class": "WanTransformer3DModel"},
        },
    },
    "measured": {
        "device": 'a "GPU"', "dtype": "bfloat16", "clips": 4, "psnr": 28.5, "ssim": 0.9,
        "psnr_interval": [27.5, 29.5], "speedup": 1.5, "versions": {"torch": "2.11.0+cu130"},
    },
    "status": "measured",
    "note": "line one\nline two \\ and \x7f, ü",
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_every_section_survives_a_round_trip(tmp_path: Path, suffix: str) -> None:
    config = SparseConfig(**FULL)
    config.save(tmp_path / f"full{suffix}")
    assert SparseConfig.load(tmp_path / f"full{suffix}") == config
    assert config.parameters["window"] == (8, 8)


def test_toml_is_read_by_the_standard_library(tmp_path: Path) -> None:
    SparseConfig(**FULL).save(tmp_path / "full.toml")
    values = tomllib.loads((tmp_path / "full.toml").read_text())
    assert values["note"] == FULL["note"]
    assert values["bands"] == FULL["bands"]
    assert values["model"] == FULL["model"]


def test_parameter_without_a_toml_form_says_so(tmp_path: Path) -> None:
    config = SparseConfig(method="svg2", parameters={"top_p": None})
    with pytest.raises(UsageError, match=r"top_p=None has no TOML form; write a \.json file"):
        config.save(tmp_path / "x.toml")
    config.save(tmp_path / "x.json")
    assert SparseConfig.load(tmp_path / "x.json") == config


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.toml or \.json"):
        SparseConfig().save(tmp_path / "x.yaml")


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(UsageError, match="version=2"):
        SparseConfig(version=2)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([{"above_sigma": 0.0}], "give either density or layers"),
        ([{"above_sigma": 0.0, "density": 0.3, "layers": [0.2]}], "give either density or layers"),
        ([{"above_sigma": 0.0, "layers": [0.2, 0.0]}], r"must hold densities in \(0, 1\]"),
        ([{"above_sigma": 0.0, "density": 1.5}], "less than or equal to 1"),
        ([{"above_sigma": 0.2, "density": 0.3}], r"must go from high to low noise and end at 0"),
        (
            [{"above_sigma": 0.0, "density": 0.3}, {"above_sigma": 0.5, "density": 0.3}],
            "must go from high to low noise",
        ),
    ],
)
def test_wrong_bands_are_refused(bands: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SparseConfig(bands=bands).build()


def test_schema_describes_every_key_and_forbids_others() -> None:
    schema = SparseConfig.model_json_schema()
    assert set(schema["properties"]) == set(SparseConfig.model_fields)
    assert schema["additionalProperties"] is False
