import pytest

from vidsparse.errors import UsageError
from vidsparse.methods.base import available_methods, build_method


@pytest.mark.parametrize(
    ("method", "key", "value", "kind"),
    [
        ("svg", "rows", "many", "int"),
        ("svg", "rows", 2.5, "int"),
        ("svg", "rows", True, "int"),
        ("svg", "decide_every", None, "int"),
        ("svg", "seed", "abc", "int"),
        ("svg", "density", "half", "float"),
        ("svg", "blocks", "(64,64)", r"tuple\[int, int\] \| None"),
        ("svg", "blocks", 64, r"tuple\[int, int\] \| None"),
        ("svg", "blocks", [64, 64, 64], r"tuple\[int, int\] \| None"),
        ("draft", "second_moment", 1, "bool"),
        ("adaspa", "search_at", 7, r"tuple\[float \| int, \.\.\.\]"),
        ("adaspa", "search_at", [7, "x"], r"tuple\[float \| int, \.\.\.\]"),
        ("lite", "seed", 3, r"str \| None"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(method, key, value, kind):
    with pytest.raises(UsageError, match=rf"method '{method}': {key}=.* must be {kind}(;|$)"):
        build_method(method, {key: value})


def test_values_of_the_right_kind_pass():
    assert build_method("svg", {"blocks": [64, 32]}).blocks == (64, 32)
    assert build_method("svg", {"density": 1}).density == 1
    assert build_method("adaspa", {"search_at": [6, 9]}).search_at == (6, 9)
    assert build_method("lite", {"threshold": 0.4, "blocks": None}).blocks is None
    for name in set(available_methods()) - {"dense"}:
        assert build_method(name, {"density": 0.5, "compensate": False}).density == 0.5


@pytest.mark.parametrize("name", ["svg", "adaspa", "compensated", "lite", "oracle", "random"])
def test_blocks_without_tokens_are_refused(name):
    with pytest.raises(UsageError, match="two sizes of at least 1 token"):
        build_method(name, {"blocks": [0, 64]})
