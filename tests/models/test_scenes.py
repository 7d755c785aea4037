import torch
from scenes import render, sample_scenes

from vidsparse.models.content import score_clip, summarise
from vidsparse.models.grammar import held_out, parse_caption


def _clips(n, *, seed=3, check=True, frames=9, height=64, width=96):
    scenes, captions = sample_scenes(n, torch.Generator().manual_seed(seed), check=check)
    video = render(scenes, frames=frames, height=height, width=width)
    return (video + 1) / 2, captions


def test_same_seed_same_clips():
    first, words = _clips(3, seed=5)
    again, same_words = _clips(3, seed=5)
    other, _ = _clips(3, seed=6)
    assert torch.equal(first, again)
    assert words == same_words
    assert not torch.equal(first, other)


def test_captions_round_trip_through_the_grammar():
    _, captions = _clips(40, check=False, frames=1, height=16, width=16)
    assert all(parse_caption(str(caption)) == caption for caption in captions)


def test_training_never_shows_a_held_out_combination():
    for check in (False, True):
        _, captions = _clips(40, check=check, frames=1, height=16, width=16)
        flags = [held_out(o.shape, o.colour, o.direction) for c in captions for o in c.objects]
        assert all(flags) if check else not any(flags)


def test_pixels_stay_in_range():
    video, _ = _clips(8, check=False)
    assert video.shape == (8, 3, 9, 64, 96)
    assert float(video.min()) >= 0.0
    assert float(video.max()) <= 1.0


def test_detector_agrees_with_the_truth():
    video, captions = _clips(40)
    scores = [score_clip(v.permute(1, 2, 3, 0), c) for v, c in zip(video, captions, strict=True)]
    result = summarise(scores, 0.0)
    assert min(result["shape"], result["colour"], result["direction"]) >= 0.97


def test_detector_refuses_what_the_caption_does_not_say():
    video, _ = _clips(1, seed=1)
    clip = video[0].permute(1, 2, 3, 0)
    caption = _clips(1, seed=1)[1][0]
    (one,) = caption.objects
    colour = "red" if one.colour != "red" else "blue"
    direction = "left" if "left" not in one.direction else "right"
    shape = "ring" if one.shape != "ring" else "square"
    wrong = score_clip(clip, f"a {colour} {shape} moves {direction}")
    assert (wrong.shape, wrong.colour, wrong.direction) == (False, False, False)


def test_lost_object_is_caught():
    _, (caption,) = _clips(1, seed=1)
    blank = torch.full((9, 64, 96, 3), 0.5)
    score = score_clip(blank, caption)
    assert (score.shape, score.colour, score.direction) == (False, False, False)
