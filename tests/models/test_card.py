import json

import pytest
from attention_study import look
from card import main
from draw import draw_attention

PARAMETERS = {"vae": 1_500_000, "text_encoder": 300_000, "transformer": 17_000_000}
RECORD = {
    "device": "some GPU",
    "commit": "abc",
    "parameters": PARAMETERS,
    "settings": {
        "seed": 0,
        "lr": 0.002,
        "ema": 0.998,
        "grids": [{"name": "cpu", "frames": 33, "height": 128, "width": 128, "batch": 64}],
    },
    "vae": {
        "steps": 10, "seconds": 20.0, "psnr_db": {"cpu": 31.4159},
        "columns": ["seconds", "step", "loss", "kl", "psnr_db"], "curve": [[1.0, 5, 1.0, 0.1, 9.0]],
    },
    "transformer": {"steps": 7, "seconds": 3.0, "curves": {"cpu": [[1, 2.0], [7, 0.5]]}},
}  # fmt: skip
CHECK = {
    "shape": 0.9531, "colour": 0.984, "direction": 0.9, "clips": 64, "seconds": 128.0,
    "floor_psnr": 41.27, "dtype": "bfloat16", "meta": {"device": "some CPU"},
    "settings": {"height": 128, "width": 128, "num_frames": 33},
}  # fmt: skip


@pytest.fixture(scope="module")
def study(random_pipe):
    """One small grid's row."""
    with pytest.MonkeyPatch.context() as patch:
        from dataclasses import replace

        from vidsparse import models

        card = replace(models.info("tiny"), grids={"cpu": models.Grid(128, 128, 25, 1792)})
        patch.setitem(models._MODELS, "tiny", card)
        random_pipe.set_progress_bar_config(disable=True)
        return look(random_pipe, "cpu", steps=3, prompts=1)


def test_study_has_a_number_for_each_layer_and_head(study):
    recall = study["oracle_recall"]
    assert list(recall) == ["0.5", "0.25", "0.125"]
    for layer in range(2):
        for head in range(2):
            some, fewer, fewest = (recall[density][layer][head] for density in recall)
            assert 1 >= some > fewer > fewest > 0.12
            assert 0 <= study["temporal"][layer][head] <= 1
    assert study["steps"] == [0, 1, 2]


def test_card_says_what_the_files_say(study, packed, tmp_path, monkeypatch):
    folder, results = packed / "tiny", tmp_path / "results"
    results.mkdir()
    (folder / "training.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr("sys.argv", ["card", "--folder", str(folder), "--results", str(results)])
    with pytest.raises(FileNotFoundError, match=r"attention-tiny\.json is missing; make it with"):
        main()
    (results / "attention-tiny.json").write_text(json.dumps({"rows": [study]}))
    (results / "check-tiny-cpu.json").write_text(json.dumps(CHECK))
    main()
    page = (folder / "README.md").read_text()
    assert "| `cpu` | 64 | 0.953 | 0.984 | 0.900 | 41.3 | 2.0 | some CPU, bfloat16 |" in page
    assert "18.8 M parameters" in page
    assert "at 31.4 dB" in page
    assert all((folder / name).stat().st_size > 5000 for name in ("training.png", "attention.png"))
    assert "Apache-2.0" in page


def test_attention_figure_takes_several_grids(study, tmp_path):
    draw_attention([study, study], tmp_path / "two.png")
    draw_attention([study], tmp_path / "one.png")
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "one.png").stat().st_size
