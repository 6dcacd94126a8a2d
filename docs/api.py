"""The page of the Python API, from the docstrings of what the package exports."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

HEAD = """# Python API

Generated from the docstrings by `python docs/make.py`. Everything that the command line does is a function of the package; a name is
imported when it is first used.

```python
import harness

result = harness.run({"recipe": "digits", "epochs": 4})
```
"""
PACKAGES = ("harness", "harness.training", "harness.data", "harness.models", "harness.evaluation", "harness.tracking")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
TITLES = {"Args": "Arguments", "Raises": "Errors"}
MANY = 12  # parameters beyond which a signature says less than the text


def api_page() -> str:
    """Return the public names of each package with their signatures and docstrings; a package without any is left out."""
    parts = [HEAD.rstrip()]
    for name in PACKAGES:
        module = import_module(name)
        if entries := list(_entries(module)):
            parts += [f"## {name}", *_docstring(module)[: None if name != "harness" else 1], *entries]
    return "\n\n".join(parts) + "\n"


def _entries(module: ModuleType) -> Iterator[str]:
    for name in getattr(module, "__all__", ()):
        try:
            value = getattr(module, name)
        except (AttributeError, ImportError):
            continue
        if inspect.isclass(value) or inspect.isroutine(value):
            yield "\n\n".join(_entry(f"{module.__name__}.{name}", value))


def _entry(name: str, value: Any) -> list[str]:
    """Return the heading, the signature and the text of a function or a class, with the public members of a class."""
    kind = "class " if inspect.isclass(value) else ""
    parts = [f"### {name}", f"```python\n{kind}{_signature(name.rpartition('.')[2], value)}\n```", *_docstring(value)]
    if not inspect.isclass(value):
        return parts
    for member, raw in vars(value).items():
        if member.startswith("_") or not inspect.getdoc(raw):
            continue
        if isinstance(raw, property | cached_property):
            parts += [f"#### {member}", *_docstring(raw)]
        elif isinstance(raw, classmethod | staticmethod) or inspect.isfunction(raw):
            parts += [
                f"#### {member}()",
                f"```python\n{_signature(member, getattr(value, member))}\n```",
                *_docstring(raw),
            ]
    return parts


def _signature(name: str, value: Any) -> str:
    """Return a signature with annotations as they are written, one parameter a line where it is long."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{name}(...)"
    parameters = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    if is_dataclass(value) and len(parameters) > MANY:
        return f"{name}({'**settings' if all(one.kind is one.KEYWORD_ONLY for one in parameters) else '...'})"
    shown, star = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        shown.append(_parameter(one))
    returned = "" if signature.return_annotation is signature.empty else f" -> {_text(signature.return_annotation)}"
    returned = "" if inspect.isclass(value) else returned
    line = f"{name}({', '.join(shown)}){returned}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(shown) + f",\n){returned}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_text(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    is_plain = parameter.default is None or isinstance(parameter.default, str | int | float | tuple)
    equals = "=" if parameter.annotation is parameter.empty else " = "
    return text + equals + (repr(parameter.default) if is_plain else "...")


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _docstring(value: Any) -> list[str]:
    """Return a docstring's paragraphs in Markdown: its sections as lists, its indented examples as code."""
    return [_paragraph(part) for part in (inspect.getdoc(value) or "").split("\n\n") if part.strip()]


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if heading := SECTION.match(lines[0]):
        title = TITLES.get(heading[1], heading[1])
        return f"**{title}**\n\n" + _section(inspect.cleandoc("\n".join(["", *lines[1:]])), heading[1])
    if all(line.startswith("    ") or not line for line in lines):
        return "```python\n" + inspect.cleandoc("\n".join(["", *lines])) + "\n```"
    return text


def _section(text: str, heading: str) -> str:
    """Return the entries of a section as a list; what is returned or yielded is a sentence."""
    if heading in ("Returns", "Yields"):
        return text
    entries: list[str] = []
    for line in text.split("\n"):
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    return "\n".join("- " + re.sub(r"^([^:`]+):", r"`\1`:", entry) for entry in entries)
