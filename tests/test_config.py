import json
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


def test_unknown_key_names_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'densty'; allowed are method, parameters"):
        SparseConfig(densty=0.3)


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


@pytest.mark.parametrize("text", ["{", "[]", '"svg"', "\xff"])
def test_file_without_a_config_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"bad\.json") as error:
        SparseConfig.load(file)
    assert "\n" not in str(error.value)


def test_missing_preset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'nope'; give a JSON file's path or one of the presets"):
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
    for file in PRESETS.glob("*.json"):
        assert SparseConfig.load(file.stem).note, f"{file.name} has no note"


def test_unwritable_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write preset"):
        SparseConfig().save(tmp_path / "no" / "such" / "folder.json")


def test_parameter_json_cannot_hold_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    SparseConfig().save(file)
    before = file.read_text()
    with pytest.raises(UsageError, match="cannot write preset"):
        SparseConfig(parameters={"order": object()}).save(file)
    assert file.read_text() == before
