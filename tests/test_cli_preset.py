import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vidsparse.cli import app
from vidsparse.cli_preset import json_schema
from vidsparse.config import SparseConfig
from vidsparse.errors import UsageError
from vidsparse.pipelines.testing import wan
from vidsparse.preset_hub import pull, push

NAME = "svg2-wan-t2v-720p"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["preset", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_list_says_what_was_not_measured_here() -> None:
    rows = [line.split(None, 2) for line in run("list").splitlines()]
    assert [NAME, "svg2", "published, not measured here"] in rows
    assert json.loads(run("list", "--json"))[NAME]["status"] == "published"


def test_show_prints_a_preset_that_can_be_saved(tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text(run("show", NAME))
    assert file.read_text().startswith("# published, not measured here\n")
    assert SparseConfig.load(file) == SparseConfig.load(NAME)
    assert json.loads(run("show", NAME, "--json"))["method"] == "svg2"


def test_validate_accepts_bundled_presets_and_names_a_typo(tmp_path: Path) -> None:
    assert "valid, method svg2" in run("validate", NAME)
    file = tmp_path / "typo.toml"
    file.write_text('method = "svg"\ndense_stesp = 3\n')
    with pytest.raises(UsageError, match=r"typo\.toml: unknown key 'dense_stesp'; did you mean"):
        run("validate", file)


def test_validate_checks_cache_and_bands(tmp_path: Path) -> None:
    file = tmp_path / "cache.toml"
    file.write_text('[cache]\nname = "first_block"\n[cache.parameters]\nthreshhold = 0.1\n')
    with pytest.raises(UsageError, match="did you mean 'threshold'"):
        run("validate", file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('impl = "cuda"', "unknown impl 'cuda'; choose one of auto, reference"),
        ('precision = "9bit"', "unknown precision '9bit'; choose one of native"),
    ],
)
def test_validate_checks_impl_and_precision(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        run("validate", file)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_export_writes_either_format(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"mine.{suffix}"
    assert f"wrote {out}" in run("export", NAME, "--out", out)
    assert SparseConfig.load(out) == SparseConfig.load(NAME)


def test_schema_is_that_of_the_class() -> None:
    assert json.loads(run("schema")) == json_schema()


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vidsparse", "preset", "show", "svg-wan-t2v-720"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "did you mean 'svg-wan-t2v-720p'?" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_pull_and_push_without_network_say_so_in_one_line(tmp_path: Path) -> None:
    for act in (lambda: pull("owner/none", tmp_path / "x.toml"), lambda: push(NAME, "owner/none")):
        with pytest.raises(UsageError, match="cannot reach the Hugging Face Hub") as error:
            act()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_malformed_repository_is_refused_before_the_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Repo id must be"):
        pull("a/b/c", tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("name", "message"), [("x.txt", "must end in .toml"), ("a.toml", "folder")]
)
def test_pull_refuses_a_file_name_before_the_network(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(UsageError, match=message):
        pull("owner/none", tmp_path / name)


def test_retries_of_the_hub_are_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(*_: object, **__: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
    with pytest.raises(UsageError, match=r"cannot reach .* \(Name or service not known\)"):
        pull("owner/none", tmp_path / "x.toml")
    assert caplog.records == []


def test_pull_checks_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = tmp_path / "vidsparse.toml"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(remote))
    SparseConfig(method="oracle").save(remote)
    assert SparseConfig.load(pull("o/n", tmp_path / "mine.json")).method == "oracle"
    remote.write_text("densty = 1")
    with pytest.raises(UsageError, match="unknown key 'densty'"):
        pull("o/n", tmp_path / "other.toml")
    assert not (tmp_path / "other.toml").exists()


def test_push_uploads_the_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent = {}

    class Api:
        def create_repo(self, repo: str, *, exist_ok: bool) -> None:
            sent["repo"] = repo, exist_ok

        def upload_file(self, **given: object) -> str:
            sent.update(given)
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(NAME, "owner/name") == "address"
    assert sent["repo"] == ("owner/name", True)
    file = tmp_path / "sent.toml"
    file.write_bytes(sent["path_or_fileobj"])
    assert SparseConfig.load(file) == SparseConfig.load(NAME)


MEASURED = """
method = "svg"
[parameters]
density = 0.3
[measured]
device = "d"
dtype = "t"
clips = 1
psnr = 30.0
[measured.target]
"""


def test_a_target_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MEASURED + "min_vmaf = 90.0\n")
    with pytest.raises(UsageError, match=r"target: unknown bound 'min_vmaf'.*max_lpips"):
        SparseConfig.load(file)


def test_a_target_in_lpips_without_lpips_fails_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MEASURED + "max_lpips = 0.1\n")
    wan(heads=2, head_dim=32).pipe.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("vidsparse.quality.load_lpips", lambda *_: "unavailable: no")
    monkeypatch.setattr("vidsparse.tuning.measure.measure_preset", None)
    with pytest.raises(UsageError, match="needs LPIPS, which is unavailable: no"):
        run("measure", file, "--model", tmp_path / "model", "--device", "cpu")
