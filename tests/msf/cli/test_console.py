"""What the commands print is what they were given."""

import pytest

from msf.cli import console


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (1, "1"), (True, "True"), ("[red]x", "[red]x"), (0.0, "0.0000"), (1.23456, "1.2346"),
        (1e-5, "1e-05"), (-2.5e-7, "-2.5e-07"), (float("nan"), "nan"), (123456.0, "123456.0000"),
    ],
)  # fmt: skip
def test_values_are_shown_in_full_and_small_ones_not_as_zero(value, text):
    assert console.shown(value) == text


def test_figures_are_columns_whatever_they_hold(capsys):
    console.print_figures("\nTitle [b]x", {"a": None, "[red]long name": "y" * 200, "中": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Title [b]x",
        "a               -",
        "[red]long name  " + "y" * 200,
        "中              0.5000",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é中", "plain é中"), ("a\nb\tc", "a\\nb\\tc"), ("\x1b[31m", "\\x1b[31m"), ("\udcff", "\\udcff")],
)
def test_what_is_no_character_is_shown_as_an_escape(text, shown):
    assert console.printable(text) == shown
