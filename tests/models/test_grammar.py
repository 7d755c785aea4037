import pytest

from vidsparse.models.grammar import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    held_out,
    known_words,
    normalise,
    parse_caption,
)


def test_example_of_the_readme_parses():
    caption = parse_caption("a small red circle moves right over drifting green stripes")
    (one,) = caption.objects
    assert (one.size, one.colour, one.shape, one.direction) == ("small", "red", "circle", "right")
    assert (caption.background_colour, caption.pattern) == ("green", "stripes")
    assert caption.drifting


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_directions_survive_the_round_trip(direction):
    caption = parse_caption(f"a cyan star quickly moves {direction} and a red ring moves left")
    assert [one.direction for one in caption.objects] == [direction, "left"]
    assert parse_caption(str(caption)) == caption


def test_unknown_words_are_ignored():
    text = "A cute, small RED circle that moves right!"
    assert normalise(text) == "a small red circle moves right"
    assert parse_caption(text) == parse_caption("a small red circle moves right")
    assert known_words("un chat dort") == []


def test_caption_without_object_is_refused():
    with pytest.raises(ValueError, match="no object found"):
        parse_caption("over green stripes")


def test_about_one_combination_in_eight_is_held_out():
    flags = [held_out(s, c, d) for s in SHAPES for c in COLOURS for d in DIRECTIONS]
    assert 0.08 < sum(flags) / len(flags) < 0.18
