"""Released models' head sizes and token grids on a GPU; the weights are random."""

import pytest

from vidsparse.pipelines.base import available_families
from vidsparse.pipelines.testing_sizes import RELEASED_SIZES
from vidsparse.profiling.check_families import check_family

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_transformer_has_one() -> None:
    built = {type(size.build().pipe.transformer).__name__ for size in RELEASED_SIZES.values()}
    assert built == {name for family in available_families().values() for name in family.models}


@pytest.mark.gpu
@pytest.mark.parametrize("name", RELEASED_SIZES)
def test_dense_equals_density_1_and_sparse_is_finite(name: str) -> None:
    row = check_family(name)
    assert row["dense_equal"], row
    assert row["sparse_finite"]
    assert row["sparse_calls"] >= 4
    assert not row["dense_calls"]
