import pytest

from quantriage.cli.printable import printable


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("model.layers.3", "model.layers.3"),
        ("ü 漢字", "ü 漢字"),
        ("\x1b[2Jcleared", "\\x1b[2Jcleared"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("right\u202eto left", "right\\u202eto left"),
        ("two\nlines\r\n", "two lines"),
        ("[bold]markup[/bold]", "[bold]markup[/bold]"),
        ("\udc80 byte", "\\udc80 byte"),
    ],
)
def test_nothing_reaches_the_terminal_that_it_would_obey(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown
