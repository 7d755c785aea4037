import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import vidsparse
from vidsparse import cli
from vidsparse.errors import UsageError
from vidsparse.layout import VideoLayout
from vidsparse.maps import HeadMap, SiteMaps, attention_maps, block_map, draw_maps
from vidsparse.methods.base import build_method
from vidsparse.methods.draft import Draft, draft_map
from vidsparse.pipelines.testing import wan as tiny_wan
from vidsparse.plan import CallSite
from vidsparse.profiling.recall import oracle_recall, recall
from vidsparse.profiling.synthetic import video_qkv
from vidsparse.watched_maps import WatchedMaps

LAYOUT = VideoLayout(4, 8, 9, text_after=7)
SITE = CallSite("transformer", 1, 4, 5, 10, 0.5, 0, 0)
METHODS = [
    ("draft", {"block": 16}),
    ("draft", {"block": 16, "tiling": "windows", "second_moment": True}),
    ("svg", {"density": 0.5, "blocks": (16, 16)}),
    ("svg2", {"q_clusters": 12, "k_clusters": 20}),
    ("random", {"blocks": (32, 16)}),
]


@pytest.fixture(scope="module")
def tokens():
    return video_qkv(LAYOUT, 2, 3, 16, torch.device("cpu"), torch.float32)


def maps_of(name, options, tokens, heads=(0, 2)):
    method = build_method(name, {"density": 0.4, **options})
    plan = method.plan(*tokens, LAYOUT, SITE, method.init_state())
    q, k, _ = tokens
    return attention_maps(method, q, k, LAYOUT, plan, SITE, heads), plan


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_figures_are_those_of_the_plan(name, options, tokens):
    maps, plan = maps_of(name, options, tokens)
    kept, exact = plan.mask.to_dense(), recall(*tokens[:2], plan)
    for head in maps.heads:
        own = kept[0, min(head.head, kept.shape[1] - 1)]
        assert np.array_equal(head.kept, own.numpy())
        assert head.recall == pytest.approx(float(exact[0, head.head]), abs=1e-5)
        assert head.q_sizes.sum() == head.kv_sizes.sum() == LAYOUT.num_tokens
        np.testing.assert_allclose(head.truth.sum(1), head.q_sizes > 0, atol=1e-5)
        np.testing.assert_allclose(head.estimate.sum(1), 1, atol=1e-5)
    assert [head.head for head in maps.heads] == [0, 2]


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_no_choice_of_the_same_blocks_beats_the_oracle_by_more_than_one(name, options, tokens):
    maps, _ = maps_of(name, options, tokens)
    for head in maps.heads:
        largest = float((head.truth * head.q_sizes[:, None]).max()) / LAYOUT.num_tokens
        assert head.recall <= head.oracle_recall + largest
        assert head.oracle_recall <= 1 + 1e-6


def test_raster_oracle_is_that_of_the_kernels_blocks(tokens):
    (head,) = maps_of("draft", {"block": 16}, tokens, heads=(1,))[0].heads
    q, k, _ = (x[:1, 1:2] for x in tokens)
    expected = float(oracle_recall(q, k, head.density, 64, 64))
    assert head.raster_oracle_recall == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"second_moment": True}, {"tiling": "windows"}])
def test_draft_shows_the_map_it_ranks(options, tokens):
    q, k, _ = tokens
    method = Draft(0.4, block=16, **options)
    maps, plan = maps_of("draft", {"block": 16, **options}, tokens)
    geometry = method.geometry(LAYOUT, q.device)
    expected = draft_map(q, k, geometry, second_moment=method.second_moment)[0, 2]
    np.testing.assert_allclose(maps.heads[1].estimate, expected, atol=1e-6)
    if not method.second_moment:
        # The map of any plan's block means is the draft map on its blocks.
        torch.testing.assert_close(block_map(q, k, plan)[0, 2], expected, atol=1e-6, rtol=1e-4)


def test_empty_clusters_have_no_share(tokens):
    q, k, v = (torch.ones_like(x) for x in tokens)
    maps, _ = maps_of("svg2", {"q_clusters": 5, "k_clusters": 5}, (q, k, v))
    head = maps.heads[0]
    assert (head.kv_sizes == 0).any()
    assert not np.isnan(head.estimate).any()
    assert not head.truth[:, head.kv_sizes == 0].any()
    assert head.recall == pytest.approx(1, abs=1e-5)
    draw_maps(maps)


def test_picture_has_three_panels_per_head_and_their_figures(tokens):
    maps, _ = maps_of("draft", {"block": 16}, tokens)
    figure = draw_maps(maps)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[::3] == ["head 0: draft map", "head 2: draft map"]
    assert titles[2::3] == ["head 0: true map", "head 2: true map"]
    assert f"recall {maps.heads[0].recall:.3f}" in titles[1]
    assert f"oracle {maps.heads[0].oracle_recall:.3f}" in titles[1]
    json.dumps(maps.as_dict(), allow_nan=False)


def test_blocks_are_whole_numbers_and_empty_clusters_are_missing():
    ones, empty = np.ones((3, 4), np.float32), np.array([2, 0, 2])
    head = HeadMap(0, ones / 4, ones / 4, ones > 0, empty, np.array([1, 2, 0, 1]), 1.0, 1.0)
    figure = draw_maps(SiteMaps("svg2", SITE, (head,)))
    figure.draw_without_rendering()
    assert "white = kept, black = skipped; grey = cluster without" in figure.get_suptitle()
    for axes in figure.axes[:3]:
        missing = np.ma.getmaskarray(axes.images[0].get_array())
        assert np.array_equal(missing, (empty == 0)[:, None] | [False, False, True, False])
        assert all(float(tick).is_integer() for tick in (*axes.get_xticks(), *axes.get_yticks()))
    whole = replace(head, q_sizes=np.array([2, 1, 1]), kv_sizes=np.array([1, 1, 1, 1]))
    assert "grey" not in draw_maps(SiteMaps("svg2", SITE, (whole,))).get_suptitle()


def test_watching_changes_nothing_and_looks_where_it_was_asked_to():
    tiny = tiny_wan(heads=3, head_dim=32, layers=3)
    size = {"height": 128, "width": 128, "num_frames": 13}
    inner = Draft(0.5)
    watched = WatchedMaps(0.5, inner=inner, layer=2, step=3, heads=(1,))
    frames = []
    for method in (inner, watched):
        with vidsparse.enabled(tiny.pipe, method, dense_steps=1):
            frames.append(tiny.latents(steps=4, changes=size))
    assert torch.equal(*frames)
    (maps,) = watched.found
    assert (maps.site.layer, maps.site.step, maps.site.branch) == (2, 3, 0)
    assert [head.head for head in maps.heads] == [1]


def test_middle_layer_and_four_heads_are_the_default(tokens):
    watched = WatchedMaps(0.4, inner=Draft(0.4, block=16))
    state = watched.init_state()
    seen = []
    for step in (3, 5, 6):
        for layer in range(4):
            site = CallSite("transformer", layer, 4, step, 10, 0.5, 0, 0)
            watched.plan(*tokens, LAYOUT, site, state)
            seen.append(len(watched.found))
    assert (watched.found[0].site.layer, watched.found[0].site.step) == (2, 5)
    assert seen[-1] == 1
    assert [head.head for head in watched.found[0].heads] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, r"--layer 4 does not exist here; use 0 to 3"),
        ({"step": -1}, r"--step -1 .* use 0 to 9"),
        ({"heads": (0, 3)}, r"--head 3 .* use 0 to 2"),
    ],
)
def test_places_that_do_not_exist_are_refused_at_once(options, message, tokens):
    watched = WatchedMaps(0.4, inner=Draft(0.4, block=16), **options)
    with pytest.raises(UsageError, match=message):
        watched.plan(*tokens, LAYOUT, SITE, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_wan(heads=2, head_dim=32).pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vidsparse", "profile", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


SIZE = ("--height", "128", "--width", "128", "--num-frames", "13", "--steps", "2")


@pytest.mark.parametrize("method", [(), ("--method", "svg2:density=0.6:k_clusters=20")])
def test_command_draws_and_prints_recall_beside_the_oracle(run, model, tmp_path, method):
    out = tmp_path / "new" / "maps.png"
    options = ("--maps", *method, "--model", model, *SIZE, "--density", "0.6", "--head", 1)
    code, text, errors = run(*options, "--out", out, "--json")
    assert code == 0, errors
    values = json.loads(text)
    (head,) = values["heads"]
    assert values["method"] == ("svg2" if method else "draft")
    assert head["head"] == 1
    assert 0 < head["recall"] <= head["oracle_recall"] + 0.05
    assert out.read_bytes().startswith(b"\x89PNG")
    if not method:
        text = run(*options, "--out", out)[1]
        assert f"recall {head['recall']:.3f}, oracle {head['oracle_recall']:.3f}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--heads", "--maps"), "one of: --heads, --maps"),
        (("--heads", "--layer", "1"), "belong to --maps"),
        (("--maps", "--method", "drift"), "unknown method 'drift'"),
        (("--maps", "--out", "a.jpg"), "does not end in .png"),
        (("--maps", "--density", "2"), "must lie in (0, 1]"),
    ],
)
def test_bad_requests_are_one_line(run, options, message):
    code, _, errors = run(*options)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", "0", "--dense-steps", "1"), "choose a later --step"),
        (("--layer", "2"), "--layer 2 does not exist here; use 0 to 1"),
    ],
)
def test_calls_that_never_come_say_so(run, model, tmp_path, options, message):
    out = tmp_path / "maps.png"
    code, _, errors = run("--maps", "--model", model, *SIZE, *options, "--out", out)
    assert code == 2
    assert message in errors
    assert not out.exists()
