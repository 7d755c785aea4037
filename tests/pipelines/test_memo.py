import pytest
import torch

from vidsparse.pipelines.memo import TensorMemo, count_rows


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_refilled_mask_is_counted_anew(mode: type) -> None:
    memo = TensorMemo(count_rows)
    with mode():
        mask = torch.ones(1, 8)
        assert memo(mask) == (8,)
        mask[:, 3:] = 0
        assert memo(mask) == (3,)


def test_same_mask_is_counted_once() -> None:
    calls = []
    memo = TensorMemo(lambda mask: calls.append(mask))
    mask = torch.ones(1, 8)
    memo(mask)
    memo(mask)
    assert len(calls) == 1
