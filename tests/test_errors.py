import pytest

from vidsparse.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("one\ntwo", "one"), ("\n one\n", "one"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_an_error_always_has_a_first_line(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
