from collections.abc import Callable
from typing import Any

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_more


def test_contract(contract: Callable[..., Any]) -> None:
    family = contract(testing_more.helios())
    # First and last history frame of 2 x 2 tokens, then two frames and four at 1/2 and 1/4.
    assert family.check_dense() == VideoLayout(3, 2, 2, text_before=2 * 4 + 1 + 1)
    assert family.spy.places == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160}, density=0.9)
    family.check_disabled()


def test_chunks_are_generations(spy: Any, contract: Callable[..., Any]) -> None:
    tiny = testing_more.helios()
    tiny.inputs["num_frames"] = 18
    family = contract(tiny)
    family.check_dense()
    assert spy.places == [(g, s, b) for g in range(2) for s in range(2) for b in range(2)]


def test_stages_of_the_pyramid_are_generations_on_growing_grids(
    contract: Callable[..., Any],
) -> None:
    family = contract(testing_more.helios(pyramid=True))
    assert family.check_dense() == VideoLayout(3, 2, 2, text_before=148)
    places = zip(family.spy.sites, family.spy.layouts, strict=True)
    assert {(s.generation, o.height) for s, o in places} == {(0, 2), (1, 4), (2, 8)}
    family.check_marker()
    # Of the first stage history has nearly all tokens, and those are kept.
    family.check_sparse({"height": 384, "width": 384}, density=0.998)
    family.check_disabled()
