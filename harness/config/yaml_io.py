"""YAML as a user means it: safe, bounded, one mapping, with the place of every mistake.

Against plain `yaml.safe_load`: `1e-3` is a number (YAML 1.2), a key given twice is an error, aliases,
tags and very deep or very large documents are refused before anything is built from them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from harness.utils.errors import UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
PLAIN_TAGS = {f"tag:yaml.org,2002:{word}" for word in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with YAML 1.2 numbers and booleans."""


# YAML 1.1 reads 1e-3 as a string, 010 as 8, 1:30 as 90 and `no` as False; 1.2 and people do not.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 010 is 10


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def _check(node: yaml.Node, where: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{where}:{key.start_mark.line + 1}: a key must be a word")
        if key.value in seen:
            raise UsageError(f"{where}:{key.start_mark.line + 1}: {key.value!r} is given twice; keep one of them")
        seen.add(key.value)


def _walk(node: yaml.Node, where: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}:{node.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")
    if node.tag not in PLAIN_TAGS:
        raise UsageError(f"{where}:{node.start_mark.line + 1}: the tag {node.tag!r} is refused; write plain values")
    _check(node, where)
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _walk(value, where, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _walk(value, where, depth + 1)


def parse_yaml(text: str, where: str = "<text>") -> Any:
    """The value of one YAML document.

    Raises:
        UsageError: malformed, unsafe, too deep, with aliases, with a key twice, or more than one document.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{where}:{_line(event)}: aliases (*{event.anchor}) are refused; write the value out")
            depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
            depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
            if depth > MAX_DEPTH:
                raise UsageError(f"{where}:{_line(event)}: nested deeper than {MAX_DEPTH} levels")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{where}{line}: not valid YAML: {problem}") from None
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # a value that is not of its tag
        raise UsageError(f"{where}: {' '.join(str(error).split())[:200]}: not a value of its kind") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most 1 MB.

    Raises:
        UsageError: the file can not be read, is too large, is not UTF-8 or is not one mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size:,} bytes; a settings file has at most {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; need the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise UsageError(f"{path}: need one mapping of `key: value` lines, found {found}")
    return value


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML text that `parse` and any YAML 1.1 or 1.2 reader read back to equal values, in the given order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


class _Dumper(yaml.SafeDumper):
    """`SafeDumper` that never writes aliases and writes floats so that YAML 1.1 readers see floats."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if value != value:
        text = ".nan"
    elif value in (float("inf"), float("-inf")):
        text = ".inf" if value > 0 else "-.inf"
    elif "." not in text and "e" in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)
# A word that either YAML would read as a number or a boolean is written in quotes.
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}
