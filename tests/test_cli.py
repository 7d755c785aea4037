import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch

from vidsparse import cli, cli_compare, cli_generate
from vidsparse.loading import has_weights
from vidsparse.methods.base import available_methods
from vidsparse.models import info
from vidsparse.models.precision import default_dtype
from vidsparse.pipelines.testing import wan as tiny_wan

# 256 tokens: the fewest that are attended to sparsely.
SIZE = ("--height", "128", "--width", "128", "--num-frames", "13", "--steps", "2")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["vidsparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_wan(heads=2, head_dim=32).pipe.save_pretrained(folder)
    return folder


def seconds(*command: str) -> float:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def test_import_and_help_are_quick() -> None:
    # The limits are 0.3 s and 1.5 s; the interpreter's own start is taken off, and the
    # median of three runs on a busy machine may be twice as long.
    def median(*command: str) -> float:
        return statistics.median(seconds(*command) for _ in range(3))

    empty = median("-c", "pass")
    assert median("-c", "import vidsparse") - empty < 0.6
    assert median("-m", "vidsparse", "--help") - empty < 3.0


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom vidsparse import cli\n"
        "assert not {'torch', 'diffusers', 'cv2', 'matplotlib', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_command_prints_help(run: Run) -> None:
    done = run()
    assert done.code == 2
    assert "Commands:" in done.out


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == "0.1.0"


def test_methods_lists_every_method(run: Run) -> None:
    rows = json.loads(run("methods", "--json").out)
    assert {row["name"] for row in rows} == set(available_methods())
    assert all(row["summary"] and row["source"] for row in rows)
    text = run("methods").out
    assert all(name in text for name in available_methods())


def test_models_lists_the_grids(run: Run) -> None:
    tiny, *transformers = json.loads(run("models", "--json").out)
    assert tiny["name"] == "tiny"
    assert tiny["grids"]["cpu"]["tokens"] > 1000
    assert "--grid cpu" in run("models").out
    assert not any("grids" in row for row in transformers)


def test_models_lists_transformers_and_pipelines(run: Run) -> None:
    rows = json.loads(run("models", "--json").out)
    for row in rows:
        assert {"family", "pipelines", "transformer", "status"} <= set(row)
    status = {row["transformer"]: row["status"] for row in rows}
    assert status["HunyuanVideo15Transformer3DModel"] == "supported"
    assert status["LatteTransformer3DModel"] == "not applicable"
    text = run("models").out
    assert "never to the whole video" in text
    assert all(row["transformer"] in text for row in rows)


def test_models_tells_what_ran_on_a_gpu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "transformer": "MochiTransformer3DModel", "device": "NVIDIA H200", "heads": 4,
        "pipeline": "MochiPipeline", "tokens": 23864, "head_size": 128, "density": 0.5,
        "dense_equal": True, "sparse_finite": True, "commit": "abc",
    }  # fmt: skip
    (tmp_path / "families-h200.json").write_text(json.dumps({"meta": {}, "rows": [row]}))
    monkeypatch.setattr("vidsparse.pipelines.listing._RESULTS", tmp_path)
    text = run("models").out
    _, mochi = text.split("mochi: MochiTransformer3DModel")
    assert (
        "on NVIDIA H200, MochiPipeline: 4 heads, 23864 tokens, D 128; "
        "density 1 equals dense, density 0.50 is finite"
    ) in mochi.split("motif_video:")[0]
    assert text.count("not run on a GPU") == text.count(", supported") - 1


def test_doctor_explains_every_kernel(run: Run) -> None:
    found = json.loads(run("doctor", "--json").out)
    kernels = {row["impl"]: row for row in found["kernels"] if row["device"] == "cpu"}
    assert kernels["torch"]["runs"]
    assert kernels["gluon"]["why_not"]
    assert found["versions"]["torch"]
    assert "kernel torch" in run("doctor").out


def test_generate_writes_a_video_and_a_summary(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.mp4"
    common = ("generate", "--model", model, "--prompt", "a cat", *SIZE, "--out", out)
    done = run(*common, "--method", "random:seed=1", "--density", "0.5", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    result = json.loads(done.out)
    assert result["frames"] == 13
    assert result["summary"]["method"] == "random"
    assert result["summary"]["sparse_calls"] > 0
    assert 0.4 < result["summary"]["density"] < 0.6
    assert [path.name for path in out.parent.iterdir()] == ["a.mp4"]


def test_generate_without_a_method_is_dense(run: Run, model: Path, tmp_path: Path) -> None:
    done = run(
        "generate", "--model", model, "--prompt", "a cat", *SIZE, "--out", tmp_path / "a.mp4"
    )
    assert done.code == 0, done.err
    assert "13 frames, denoising" in done.out


def test_generate_takes_a_preset(run: Run, model: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.json"
    preset.write_text('{"method": "oracle", "parameters": {"density": 0.5}, "dense_steps": 1}')
    done = run(
        "generate", "--model", model, "--prompt", "x", *SIZE, "--preset", preset,
        "--out", tmp_path / "a.mp4", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)["summary"]
    assert summary["method"] == "oracle"
    assert summary["dense_calls"] == {"dense steps": summary["calls"] // 2}


def test_compare_writes_table_pictures_json_and_page(run: Run, model: Path, tmp_path: Path) -> None:
    out, page, file = tmp_path / "cmp", tmp_path / "page.html", tmp_path / "rows.json"
    done = run(
        "compare", "--model", model, "--prompt", "a cat", *SIZE, "--density", "0.5",
        "--method", "random", "--method", "oracle", "--method", "dense", "--floor", "precision",
        "--out", out, "--json", file, "--report", page, "--maps",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(file.read_text())
    assert {"device", "torch", "commit", "command", "date"} <= set(document["meta"])
    rows = {row["method"]: row for row in document["rows"]}
    other = "float32" if default_dtype("cpu") == torch.bfloat16 else "bfloat16"
    assert list(rows) == ["random", "oracle", "dense", f"dense {other}"]
    assert rows["dense"]["identical"]
    assert rows["dense"]["psnr"] is None
    assert rows["random"]["psnr"] > 10
    assert rows["random"]["density"] == pytest.approx(0.5, abs=0.1)
    assert all(row["speedup"] > 0 and -1 <= row["ssim"] <= 1 for row in rows.values())
    assert rows[f"dense {other}"]["role"] == "floor"
    names = ["clips", "contact-sheet.png", "results.json", "side-by-side.mp4"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "results.json").read_text()) == document
    assert len(list(out.glob("clips/*/*.maps.json"))) == 2
    assert "speed-up" in done.out
    assert "clip 1 of 5: dense, seed 0; about " in done.err
    again = run("report", out, "--out", tmp_path / "again.html")
    assert again.code == 0, again.err
    assert (tmp_path / "again.html").read_text() == page.read_text()


def test_an_interrupted_compare_says_how_to_go_on(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidsparse.compare.compare", stop)
    done = run(
        "compare", "--model", model, "--prompt", "x", *SIZE, "--floor", "none", "--density", "0.5",
        "--out", tmp_path,
    )  # fmt: skip
    assert done.code == 130
    assert f"kept in {tmp_path / 'clips'}; the same command goes on" in done.err
    assert "without --fresh" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fresh_compare_goes_on_without_it(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidsparse.compare.compare", stop)
    done = run("compare", "--model", model, *SIZE, "--floor", "none", "--fresh", "--out", tmp_path)
    assert done.code == 130
    assert "the same command without --fresh goes on" in done.err


def test_compare_prints_pure_json(run: Run, model: Path, tmp_path: Path) -> None:
    done = run(
        "compare", "--model", model, "--prompt", "a cat", *SIZE, "--method", "random:density=0.4",
        "--seeds", "2", "--floor", "none", "--out", tmp_path, "--json", "-",
    )  # fmt: skip
    document = json.loads(done.out)
    assert done.err == ""
    assert [scene["seed"] for scene in document["scenes"]] == [0, 1]
    assert document["rows"][0]["clips"] == 2
    assert document["rows"][0]["method"] == "random:density=0.4"


@pytest.mark.skipif(not has_weights("tiny"), reason="this checkout holds no weights")
def test_bundled_model_is_the_default_and_its_content_is_judged(run: Run, tmp_path: Path) -> None:
    done = run(
        "compare", "--steps", "2", "--density", "0.3", "--floor", "none", "--out", tmp_path,
        "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["meta"]["model"] == "tiny"
    assert document["meta"]["sampling"]["height"] == info("tiny").grids["cpu"].height
    assert set(document["rows"][0]["content"]) == {"shape", "colour", "direction"}


def test_profile_draws_head_types(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.png"
    done = run(
        "profile", "--heads", "--model", model, *SIZE, "--density", "0.9", "--out", out, "--json"
    )
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["transformers"]
    assert 0 <= row["temporal_share"] <= 1
    assert len(row["temporal"]) == len(row["steps"])
    assert out.read_bytes().startswith(b"\x89PNG")


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
BAD = {
    "unknown command": (("generat",), "No such command"),
    "unknown option": (("generate", "--promt", "x"), "--prompt"),
    "missing option": (("generate", "--prompt", "x"), "--out"),
    "no number": (("compare", "--steps", "many"), "--steps"),
    "unknown method": (("compare", "--method", "svgg"), "unknown method 'svgg'"),
    "unknown parameter": (("compare", "--method", "svg:row=3"), "no parameter 'row'"),
    "no value": (("compare", "--method", "svg:rows"), "no '='"),
    "density 0": (("compare", "--density", "0"), "density=0.0 must lie in (0, 1]"),
    "density 2": (("compare", "--method", "svg:density=2"), "must lie in (0, 1]"),
    "dense steps": (("compare", "--dense-steps", "few"), "must be a number"),
    "unknown model": (("compare", "--model", "huge"), "unknown model 'huge'"),
    "uncached model": (("compare", "--model", "owner/none"), "hf download owner/none"),
    "no diffusers folder": (("compare", "--model", "tests"), "no model_index.json"),
    "unknown grid": (("compare", "--grid", "moon"), "no grid 'moon'"),
    "unknown device": (("compare", "--device", "tpu"), "unknown device 'tpu'"),
    "unknown dtype": (("compare", "--dtype", "int3"), "unknown dtype 'int3'"),
    "unknown kernel": (("compare", "--impl", "magic"), "unknown impl 'magic'"),
    "kernel of another device": (
        ("compare", "--device", "cpu", "--impl", "gluon"),
        "impl 'gluon' cannot run on cpu",
    ),
    "kernel of another device in a preset": (
        ("compare", "--device", "cpu", "--preset", "gluon.toml"),
        "impl 'gluon' cannot run on cpu",
    ),
    "share of steps": (("compare", "--dense-steps", "-1"), "dense_steps=-1 must be a share"),
    "dense steps once": (
        ("compare", "--dense-steps", "abc"),
        "--dense-steps 'abc' must be a num",
    ),
    "parameter twice": (
        ("compare", "--method", "svg:density=0.3:density=0.4"),
        "density is given twice",
    ),
    "no guidance": (("compare", "--guidance", "nan"), "guidance=nan must be a finite number"),
    "endless guidance": (("profile", "--guidance", "inf"), "guidance=inf must be a finite number"),
    "negative guidance": (
        ("generate", "--prompt", "x", "--out", "a.mp4", "--guidance", "-1"),
        "guidance=-1.0 must be a finite number",
    ),
    "no steps": (("compare", "--steps", "0"), "steps=0 must be at least 1"),
    "no target": (("calibrate", "--out", "a.toml", "--target-error", "0"), "must lie in (0, 1)"),
    "no segments": (("calibrate", "--out", "a.toml", "--segments", "0"), "must be at least 1"),
    "no warm-up": (("calibrate", "--out", "a.toml", "--dense-steps", "-1"), "dense_steps=-1"),
    "no time": (("tune", "--min-psnr", "28", "--max-time", "-1"), "--max-time -1.0 must be"),
    "tune into a file": (("tune", "--min-psnr", "28", "--out", "file"), "is no writable folder"),
    "no steps to check": (("models", "--check", "tiny", "--steps", "0"), "--steps 0 must be"),
    "no rate": (("compare", "--fps", "0"), "--fps"),
    "negative seed": (("compare", "--seed", "-1"), "--seed"),
    "missing preset": (("compare", "--preset", "none.json"), "no preset file"),
    "no clips": (("compare", "--clips", "-1"), "-1 seeds or clips a prompt are none"),
    "option as json": (("compare", "--json", "--maps"), "--maps is an option where"),
    "option as page": (("compare", "--report", "--maps"), "--maps is an option where"),
    "method twice": (("compare", "--method", "svg", "--method", "svg"), "given twice"),
    "unknown floor": (("compare", "--floor", "low"), "choose one of auto, precision, backend"),
    "no prompts file": (("compare", "--prompts", "none.txt"), "cannot read prompts"),
    "empty prompts file": (("compare", "--prompts", "file"), "holds no prompt"),
    "no results": (("report", "tests"), "holds no results.json"),
    "unwritable page": (("report", "tests", "--out", "file/a.html"), "is no writable folder"),
    "no scenes": (("report", "tests", "--scenes", "0"), "at least 1"),
    "missing video": (("metrics", "a.mp4", "b.mp4"), "there is no video a.mp4"),
    "broken video": (("metrics", "file", "file"), "cannot be decoded"),
    "unknown check": (("models", "--check", "huge"), "no bundled model"),
    "no mp4": (("generate", "--prompt", "x", "--out", "a.gif"), "does not end in .mp4"),
    "unwritable folder": (
        ("generate", "--prompt", "x", "--out", "file/a.mp4"),
        "is no writable folder",
    ),
    "unwritable json": (("compare", "--json", "file/a.json"), "is no writable folder"),
    "folder as page": (("compare", "--report", "tests"), "is a folder"),
    "lonely density": (
        ("generate", "--prompt", "x", "--out", "a.mp4", "--density", "0.3"),
        "needs --method",
    ),
    "lonely precision": (
        ("generate", "--prompt", "x", "--out", "a.mp4", "--precision", "8bit"),
        "--precision 8bit needs --method",
    ),
    "lonely dense steps": (
        ("generate", "--prompt", "x", "--out", "a.mp4", "--dense-steps", "0"),
        "--dense-steps 0 needs --method",
    ),
    "lonely dense layers": (
        ("generate", "--prompt", "x", "--out", "a.mp4", "--dense-layers", "0.1"),
        "--dense-layers 0.1 needs --method",
    ),
    "prompt that is no text": (("compare", "--prompt", "a c\udce4t"), "is no UTF-8 text"),
    "prompt of a clip that is no text": (
        ("generate", "--prompt", "a c\udce4t", "--out", "a.mp4"),
        "is no UTF-8 text",
    ),
    "density of dense": (("compare", "--method", "dense", "--density", "0.3"), "leave it out"),
    "own density of dense": (("compare", "--method", "dense:density=0.3"), "leave it out"),
    "density without a picture": (("profile", "--density", "0.5"), "belong to --heads or --maps"),
    "unknown kernel case": (("bench", "kernels", "--case", "x"), "unknown case 'x'"),
    "unknown bench case": (("bench", "methods", "--case", "x"), "unknown case 'x'"),
    "unknown bench method": (("bench", "methods", "--method", "x"), "unknown method 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "gluon.toml").write_text('impl = "gluon"')
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[name]
    assert_refused(run(*arguments), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gluon.toml", "tests"]


@NO_GPU
def test_cuda_without_a_gpu_is_refused(run: Run) -> None:
    assert_refused(run("compare", "--device", "cuda"), "torch sees no GPU")


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [("--height", "130", "use 128"), ("--width", "8", "use 16"), ("--num-frames", "12", "use 13")],
)
def test_sizes_the_vae_cannot_make_are_refused(
    run: Run, model: Path, tmp_path: Path, option: str, value: str, hint: str
) -> None:
    done = run(
        "generate", "--model", model, "--prompt", "x", "--out", tmp_path / "a.mp4", option, value
    )
    assert_refused(done, hint)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_pipeline_is_refused(run: Run, tmp_path: Path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4,), norm_num_groups=1, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "model")
    done = run(
        "generate", "--model", tmp_path / "model", "--prompt", "x", "--out", tmp_path / "a.mp4"
    )
    assert_refused(done, "DDPMPipeline has no transformer")
    assert not (tmp_path / "a.mp4").exists()


def test_incomplete_model_folder_is_refused(run: Run, tmp_path: Path) -> None:
    index = {"_class_name": "NoSuchPipeline", "_diffusers_version": "0.41.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    done = run("generate", "--model", tmp_path, "--prompt", "x", "--out", tmp_path / "a.mp4")
    assert_refused(done, "cannot be loaded")


def test_our_own_mistakes_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(cli_compare, "sparse_requests", broken)
    monkeypatch.setattr(sys, "argv", ["vidsparse", "compare"])
    with pytest.raises(KeyError, match="bug"):
        cli.main()


def test_prompt_without_a_known_word_is_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli_generate.note_unknown_words("tiny", ["zzz qqq", "a red circle moves right"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "knows no word of 'zzz qqq'" in lines[0]


def assert_refused(done: Done, expected: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("vidsparse: ")
    assert expected in done.err
