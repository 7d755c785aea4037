from dataclasses import replace

import pytest
import torch

from vidsparse.layout import VideoLayout
from vidsparse.methods.adaspa import AdaSpa
from vidsparse.methods.draft import Draft
from vidsparse.plan import CallSite
from vidsparse.profiling.recall_decay import RecallWatch, decay_rows, draw_decay
from vidsparse.profiling.synthetic import video_qkv

LAYOUT = VideoLayout(4, 8, 9)
SITE = CallSite("transformer", 0, 4, 0, 10, 0.5, 0, 0)
CPU = torch.device("cpu")


def watched(methods):
    """A run of ten steps, six of them sparse, whose tokens turn into others step by step."""
    watch = RecallWatch(0.3, methods=methods)
    start, end = (video_qkv(LAYOUT, 2, 2, 16, CPU, torch.float32, seed=s) for s in (0, 1))
    states = {}
    for step in range(4, 10):
        turn = (step - 4) / 5
        tokens = [a * (1 - turn) + b * turn for a, b in zip(start, end, strict=True)]
        for layer in range(4):
            for branch in (0, 1):
                site = replace(SITE, step=step, layer=layer, branch=branch)
                state = states.setdefault((layer, branch), watch.init_state())
                assert watch.plan(*tokens, LAYOUT, site, state) is None
    return watch


def test_a_reused_mask_ages_and_a_search_makes_it_young():
    twice = AdaSpa(0.3, search_at=(4, 7), heads="equal", blocks=(16, 16))
    once = replace(twice, search_at=(4,))
    rows = decay_rows(watched({"twice": twice, "once": once}), "test", 10, 4)
    by = {(row["method"], row["step"]): row for row in rows}
    assert [by["twice", s]["age"] for s in range(4, 10)] == [0, 1, 2, 0, 1, 2]
    assert [by["once", s]["age"] for s in range(4, 10)] == list(range(6))
    assert by["once", 4]["recall"] == by["twice", 4]["recall"] > by["once", 4]["oracle_recall"]
    assert by["once", 7]["recall"] < by["twice", 7]["recall"]
    assert {row["tokens"] for row in rows} == {LAYOUT.num_tokens}
    assert by["twice", 7]["density"] == pytest.approx(0.3, abs=0.02)


def test_layers_branches_and_batch_rows_that_nobody_asked_for_are_left_out():
    watch = watched({"draft": Draft(0.3)})
    assert {seen.site.layer for seen in watch.seen} == {0, 2, 3}
    assert {seen.site.branch for seen in watch.seen} == {0}
    rows = decay_rows(watch, "test", 10, 4)
    assert [row["age"] for row in rows] == [0] * 6
    assert all(len(row["of_oracle_per_layer"]) == 3 for row in rows)


def test_each_method_is_a_line_of_the_picture():
    pytest.importorskip("matplotlib")
    rows = decay_rows(watched({"draft": Draft(0.3), "more": Draft(0.6)}), "test", 10, 4)
    figure = draw_decay(rows)
    (axes,), (legend,) = figure.axes, figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert sorted(labels) == ["draft", "more"]
    line = axes.get_lines()[labels.index("draft")]
    assert list(line.get_xdata()) == list(range(4, 10))
    drafted = [row["of_oracle"] for row in rows if row["method"] == "draft"]
    assert list(line.get_ydata()) == drafted
