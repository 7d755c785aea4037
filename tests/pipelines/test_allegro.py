from collections.abc import Callable
from typing import Any

from vidsparse.layout import VideoLayout
from vidsparse.pipelines import testing_more


def test_contract(contract: Callable[..., Any]) -> None:
    family = contract(testing_more.allegro())
    assert family.check_dense() == VideoLayout(3, 2, 2)
    # Negative and positive prompt are rows of one forward.
    assert {shape[0] for shape in family.spy.shapes} == {2}
    assert family.spy.places == [(0, 0, 0), (0, 1, 0)]
    family.check_marker()
    family.check_sparse({"height": 160, "width": 160, "num_videos_per_prompt": 2})
    family.check_disabled()
