import json
from dataclasses import replace
from typing import Any

import pytest

from vidsparse.pipelines.hunyuan_video15 import HunyuanVideo15Family
from vidsparse.pipelines.testing_parts import TinyPipeline
from vidsparse.pipelines.testing_sizes import released_heads
from vidsparse.profiling import check_families
from vidsparse.profiling.check_families import check_family, main

pytestmark = pytest.mark.filterwarnings("ignore")


def small(name: str, *, device: str) -> TinyPipeline:
    """At least 300 tokens; fewer stay dense."""
    tiny = released_heads(name, device=device)
    return replace(tiny, inputs={**tiny.inputs, "height": 160, "width": 160})


def check(name: str) -> dict[str, Any]:
    return check_family(name, "cpu", density=0.95, build=small)


def test_a_family_is_equal_bit_by_bit() -> None:
    row = check("wan")
    assert row["dense_equal"]
    assert (row["difference"], row["difference_float32"]) == (0, None)
    assert row["sparse_finite"]
    assert (row["sparse_calls"], row["dense_calls"]) == (8, 0)
    assert (row["heads"], row["tokens"], row["head_size"]) == (4, 300, 128)
    assert row["pipeline"] == "WanPipeline"
    assert 0.95 <= row["density"] < 1


def test_a_replaced_mask_is_equal_up_to_rounding() -> None:
    row = check("hunyuan_video15")
    assert row["dense_equal"]
    assert 0 < row["difference"] < 0.02
    assert row["difference_float32"] < 2e-6


def test_a_wrong_length_in_the_place_of_a_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    count = HunyuanVideo15Family._count_valid

    def longer(self: Any, inputs: Any) -> tuple[int, ...]:
        return tuple(valid + 1 for valid in count(self, inputs))

    monkeypatch.setattr(HunyuanVideo15Family, "_count_valid", longer)
    assert not check("hunyuan_video15")["dense_equal"]


def test_one_family_that_fails_hides_no_other(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"case": "wan", "dense_equal": True, "sparse_finite": True, "sparse_calls": 8}

    def one(name: str, device: str, *, density: float) -> dict[str, Any]:
        if name == "mochi":
            raise RuntimeError("out of memory")
        return {**row, "case": name}

    monkeypatch.setattr(check_families, "check_family", one)
    out = tmp_path / "families-cpu.json"
    assert main(["--device", "cpu", "--cases", "mochi,wan", "--out", str(out)]) == 1
    assert "mochi failed: RuntimeError: out of memory" in capsys.readouterr().err
    assert [each["case"] for each in json.loads(out.read_text())["rows"]] == ["wan"]
    assert main(["--device", "cpu", "--cases", "wan"]) == 0


def test_an_unknown_case_is_refused(capsys):
    assert main(["--cases", "wan,nosuch", "--device", "cpu"]) == 2
    assert "unknown case nosuch; use wan" in capsys.readouterr().err
