import pytest

from vidsparse.errors import UsageError
from vidsparse.method_text import split_method


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("svg", ("svg", {})),
        ("svg:density=0.2: rows=128", ("svg", {"density": 0.2, "rows": 128})),
        ("svg:blocks=[64,64]:compensate=true", ("svg", {"blocks": [64, 64], "compensate": True})),
        ("lite:a=True:b=False:c=None", ("lite", {"a": True, "b": False, "c": None})),
        ("draft:budget=row:x=", ("draft", {"budget": "row", "x": ""})),
    ],
)
def test_values_are_read_as_what_they_look_like(text, expected):
    assert split_method(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("svg:rows", "'rows' has no '='"), ("svg:a=1:a=2", "a is given twice")],
)
def test_pairs_that_say_nothing_or_too_much_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        split_method(text)
