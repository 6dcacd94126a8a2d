"""What the names of classes say about augmentation: images themselves cannot tell whether a changed one has the same label."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIDES = {"left", "right"}
# A class that is a character: `7`, `a`, `seven`, or one of these behind a word that says so, as `digit 7` or `letter_a`.
CHARACTER_WORD = r"(?:digit|letter|number|numeral|character|char|upper|lower|upper[ _-]?case|lower[ _-]?case|capital)"
CHARACTERS = re.compile(
    rf"(?:{CHARACTER_WORD}(?:[\W_]+|(?=\d)))*(?:\d+|[^\W_]|zero|one|two|three|four|five|six|seven|eight|nine)"
    rf"(?:[\W_]+{CHARACTER_WORD})?",
    re.IGNORECASE,
)
CHARACTER_SETS = ("digits", "mnist", "svhn", "usps", "omniglot")
COLOURS = {
    "red", "orange", "yellow", "green", "blue", "violet", "purple", "pink", "magenta", "cyan", "brown", "black", "white", "grey", "gray",
}  # fmt: skip


def why_not_mirrored(data: str, classes: Sequence[str]) -> str:
    """Return why images of these classes should not be mirrored; empty where nothing speaks against it."""
    name = data.lower()
    if any(part in name for part in CHARACTER_SETS) and "fashion" not in name:
        return f"{data} has characters, and mirrored characters are none"
    if classes and all(CHARACTERS.fullmatch(each.strip()) for each in classes):
        return f"class names such as {classes[0]!r} look like characters, and mirrored characters are none"
    if sides := sorted(SIDES & _words(classes)):
        return f"class names contain {' and '.join(sides)}"
    return ""


def why_no_colours(classes: Sequence[str]) -> str:
    """Return why the colours of images of these classes should not be changed much; empty where nothing speaks against it."""
    named = sorted(COLOURS & _words(classes))
    return f"class names contain {named[0]} and {named[1]}" if len(named) > 1 else ""


def _words(classes: Sequence[str]) -> set[str]:
    return {word.lower() for each in classes for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", each)}
