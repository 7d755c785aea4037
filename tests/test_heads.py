import json

import numpy as np
import pytest
import torch

from vidsparse.heads import draw_head_types, head_types
from vidsparse.methods.svg import WatchedSVG
from vidsparse.plan import CallSite


def decide(watched, *, layer, step, branch, temporal):
    site = CallSite("transformer", layer, 3, step, 10, 0.5, branch, 0)
    watched.decisions.append((site, torch.tensor([temporal])))


@pytest.fixture
def watched():
    made = WatchedSVG()
    # Two branches disagree on head 1 of layer 0; layer 1 decides at step 6 only, layer 2 never.
    decide(made, layer=0, step=4, branch=0, temporal=[True, False])
    decide(made, layer=0, step=4, branch=1, temporal=[True, True])
    decide(made, layer=1, step=6, branch=0, temporal=[False, False])
    return made


def test_shares_are_means_over_branches_and_missing_where_dense(watched):
    (found,) = head_types(watched)
    assert found.steps == (4, 6)
    assert found.temporal.shape == (2, 3, 2)
    assert found.temporal[0, 0].tolist() == [1.0, 0.5]
    assert found.temporal[1, 1].tolist() == [0.0, 0.0]
    assert np.isnan(found.temporal[0, 1:]).all()
    assert found.by_layer()[0, 0] == 0.75


def test_json_has_null_for_dense_layers(watched):
    values = json.loads(json.dumps(head_types(watched)[0].as_dict(), allow_nan=False))
    assert values["temporal"][0][1] == [None, None]
    assert values["temporal"][0][0] == [1.0, 0.5]
    assert values["temporal_share"] == pytest.approx(1.5 / 4)


def test_picture_has_one_panel_per_transformer(watched):
    other = CallSite("transformer_2", 0, 3, 8, 10, 0.1, 0, 0)
    watched.decisions.append((other, torch.tensor([[True, True]])))
    figure = draw_head_types(head_types(watched))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split(":")[0] for title in titles] == ["transformer", "transformer_2"]


def test_nothing_decided_is_nothing_found():
    assert head_types(WatchedSVG()) == []
