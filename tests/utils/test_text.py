"""Text made safe for terminals, Markdown and spreadsheets, checked by other readers: csv, html, the Unicode database."""

import csv
import html
import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.utils.text import csv_cell, csv_text, escape_unprintable, markdown, percent, printable, truncate, write_csv

# Everything that str can hold: control characters, direction marks, unpaired surrogates and noncharacters too.
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
# What terminals act on: C0 and C1 control characters, among them ESC and CSI, and what changes the reading direction.
ACTIVE = {*map(chr, range(32)), *map(chr, range(127, 160)), *"\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2069"}


@given(ANY_TEXT)
def test_printable_text_has_as_many_characters_and_none_that_a_terminal_acts_on(text):
    result = printable(text)
    assert len(result) == len(text)
    assert not ACTIVE & set(result)
    assert not any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for letter in result)
    result.encode("utf-8")  # no surrogates
    for before, after in zip(text, result, strict=True):
        assert after in (before, " ")


def test_printable_text_keeps_newlines_only_on_request():
    assert printable("a\x1b[31m\nb\x9b0m") == "a [31m b 0m"
    assert printable("a\x1b[31m\nb\r\n", keep_newlines=True) == "a [31m\nb \n"
    assert printable("Grüße 日本 🙂") == "Grüße 日本 🙂"
    assert printable(3.5) == "3.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("näh 猫", "näh 猫"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202egpj", "\\u202egpj"),
        ("\udcff.png", "\\udcff.png"),
        ("\U000e0001", "\\U000e0001"),
        ("", ""),
    ],
)
def test_unprintable_characters_become_pythons_escapes(text, expected):
    assert escape_unprintable(text) == expected


@given(ANY_TEXT)
def test_escaped_text_prints_on_one_line_and_can_be_decoded(text):
    result = escape_unprintable(text)
    assert result.isprintable()
    result.encode("utf-8")  # no surrogates
    if "\\" not in text and text.isascii():
        assert result.encode("ascii").decode("unicode_escape") == text


@given(ANY_TEXT, st.integers(1, 30))
def test_truncated_text_is_one_line_of_at_most_the_width(text, width):
    result, line = truncate(text, width), " ".join(text.split())
    assert len(result) <= width and "\n" not in result
    if len(line) <= width:
        assert result == line
    else:
        assert len(result) == width
        if "…" not in line:
            head, _, tail = result.partition("…")
            assert line.startswith(head) and line.endswith(tail)


def test_the_end_of_a_long_name_stays_visible():
    assert truncate("a_very_long_name_of_a_layer.conv2", 16) == "a_very_lon…conv2"
    assert truncate("abc", 1) == "…"


@pytest.mark.parametrize(
    ("fraction", "digits", "expected"),
    [
        (1, 1, "100 %"),
        (0, 1, "0 %"),
        (0.99999, 1, "99.9 %"),
        (0.00001, 1, "0.1 %"),
        (0.999999, 2, "99.99 %"),
        (0.9996, 0, "99 %"),
        (0.5, 1, "50.0 %"),
        (0.9184, 1, "91.8 %"),
        (0.9184, 2, "91.84 %"),
    ],
)
def test_only_a_true_one_is_100_percent_and_only_a_true_zero_is_0_percent(fraction, digits, expected):
    assert percent(fraction, digits) == expected


@given(st.floats(0.002, 0.998))
def test_a_percentage_is_rounded_to_its_last_digit(fraction):
    assert float(percent(fraction, 2).removesuffix(" %")) == pytest.approx(100 * fraction, abs=0.005 + 1e-9)


@given(ANY_TEXT)
def test_markdown_has_no_special_characters_and_reads_back_as_the_same_line(text):
    result, line = markdown(text), re.sub(r"\s+", " ", text)
    assert not set("<>`*_[]|!\\\n\r") & set(result)
    if line.isprintable():  # HTML allows no entities for other code points
        assert html.unescape(result) == line


@pytest.mark.parametrize(
    "text", ["**bold**", "[a](http://x)", "<script>", "a|b", "`x`", "![i](u)", "a\\b", "&lt;", "_x_"]
)
def test_markdown_renders_names_literally(text):
    assert html.unescape(markdown(text)) == text
    assert markdown(text) != text


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")', "-"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_that_a_spreadsheet_would_evaluate_gets_an_apostrophe(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1, -0.5, 1e-3, True, "a=b", "'", "", "1", " =1"])
def test_numbers_and_harmless_text_stay_as_they_are(value):
    assert csv_cell(value) is value


def test_none_is_an_empty_cell():
    assert csv_cell(None) == ""


CELLS = st.one_of(st.none(), st.integers(), ANY_TEXT, st.sampled_from(FORMULAS))


@given(
    st.lists(ANY_TEXT, min_size=2, max_size=4).flatmap(
        lambda header: st.tuples(
            st.just(header), st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), max_size=4)
        )
    )
)
def test_a_table_read_back_by_the_csv_module_is_the_same_but_for_the_apostrophes(table):
    header, rows = table
    lines = csv.reader(io.StringIO(csv_text(header, rows), newline=""))
    for written, read in zip([header, *rows], lines, strict=True):
        for value, text in zip(written, read, strict=True):
            assert not text.startswith(("=", "+", "@", "\t", "\r", "\n"))
            if isinstance(value, str):
                assert text in (value, f"'{value}")
            else:
                assert text == ("" if value is None else str(value))


def test_quotes_commas_and_line_ends_in_cells_are_quoted():
    assert csv_text(["a", "b"], [['say "x"', "1,5"], ["two\nlines", 3]]) == ('a,b\n"say ""x""","1,5"\n"two\nlines",3\n')


def test_a_written_table_is_utf_8_with_surrogates_as_escapes(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ["name", "value"], [["Grüße.png", 0.25], ["\udcff.png", None], ["=x", -1]])
    assert path.read_bytes() == "name,value\nGrüße.png,0.25\n\\udcff.png,\n'=x,-1\n".encode()
    with open(path, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[2] == ["\\udcff.png", ""]
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]
