"""Strict YAML 1.2: safe, bounded, and with the line of every mistake.

Unlike `yaml.safe_load` it reads `1e-3` as a number, and it refuses duplicate keys, aliases (unless the caller allows
them, within a bound), tags and very deep or very large documents before it constructs anything from them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from harness.utils.errors import UsageError, first_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_EXPANDED = 20_000  # values of a document with aliases, each counted wherever an alias repeats it
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)  # a value that does not match its tag
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


# Of libyaml, nine times as fast, where PyYAML was built with it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 010 is 10


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _of_yaml_1_2(loader: Any) -> Any:
    """Give a loader the numbers and booleans of YAML 1.2.

    YAML 1.1 reads 1e-3 as a string, 010 as 8, 1:30 as 90 and `no` as False; YAML 1.2 does not.
    """
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    )
    loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
    loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
    return loader


@_of_yaml_1_2
class _Loader(yaml.SafeLoader):
    """The loader in Python, whose messages say what is wrong."""


@_of_yaml_1_2
class _FastLoader(_Base):
    """The loader in C for documents without a mistake."""


def _check_keys(node: yaml.Node, source: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(
                f"{source}:{key.start_mark.line + 1}: a key must be a plain value, not a list or a mapping"
            )
        if key.value in seen:
            raise UsageError(f"{source}:{key.start_mark.line + 1}: {key.value!r} is given twice; keep one of them")
        seen.add(key.value)


def _check_node(node: yaml.Node, source: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UsageError(f"{source}:{node.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")
    if node.tag not in PLAIN_TAGS:
        raise UsageError(
            f"{source}:{node.start_mark.line + 1}: the tag {node.tag!r} is not allowed; write plain values"
        )
    _check_keys(node, source)
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _check_node(value, source, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_node(value, source, depth + 1)


def _check_expansion(node: yaml.Node, source: str) -> None:
    """Refuse aliases that repeat themselves, or so much that the document would grow beyond `MAX_EXPANDED` values.

    Each anchored value is counted once and its size remembered, so that the check is quick however often it is repeated.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise UsageError(f"{source}:{node.start_mark.line + 1}: an alias stands inside what it repeats")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(map(size, inner))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (count := size(node)) > MAX_EXPANDED:
        raise UsageError(
            f"{source}: its aliases repeat so much that there would be {count:,} values; at most {MAX_EXPANDED:,} are read"
        )


def parse_yaml(text: str, source: str = "<text>", *, aliases: bool = False) -> Any:
    """Return the value of one YAML document.

    Args:
        source: the name of the document in error messages.
        aliases: allow aliases (`*name`) and merge keys (`<<: *name`), as long as they repeat little.

    Raises:
        UsageError: it is malformed, unsafe or too deep, has aliases or duplicate keys, or there are several documents.
    """
    try:
        return _parse(text, source, aliases, _FastLoader)
    except (yaml.YAMLError, UsageError, *_UNREADABLE):
        pass  # the loader in Python says why
    try:
        return _parse(text, source, aliases, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"{source}{position}: not valid YAML: {problem}") from None
    except UsageError:
        raise
    except _UNREADABLE as error:
        raise UsageError(f"{source}: invalid value ({' '.join(str(error).split())[:200]})") from None


def _parse(text: str, source: str, aliases: bool, loader_type: Any) -> Any:
    depth, has_aliases = 0, False
    for event in yaml.parse(text, Loader=loader_type):
        has_aliases = has_aliases or isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise UsageError(f"{source}:{_line(event)}: aliases (*{event.anchor}) are not allowed; write the value out")
        depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{source}:{_line(event)}: nested deeper than {MAX_DEPTH} levels")
    loader = loader_type(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if has_aliases:
        _check_expansion(node, source)
    _check_node(node, source)
    return loader.construct_document(node)


def read_yaml(path: str | Path, *, aliases: bool = False) -> dict[str, Any]:
    """Return the mapping in a YAML file of at most 1 MB.

    Args:
        aliases: see `parse_yaml`.

    Raises:
        UsageError: the file cannot be read, is too large, is not UTF-8 or is not one mapping.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its other end
            kind = "a directory" if path.is_dir() else "no regular file"
            raise UsageError(f"{path}: {kind}; need the path of a YAML or JSON file")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size:,} bytes; a settings file has at most {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; need the path of a YAML or JSON file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    value = parse_yaml(text, str(path), aliases=aliases)
    if not isinstance(value, dict):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise UsageError(f"{path}: need one mapping of `key: value` lines, got {kind}")
    return value


def dump_yaml(values: dict[str, Any]) -> str:
    """Return YAML text that `parse_yaml` and any YAML 1.1 or 1.2 reader read back as equal values, in the same order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


class _Dumper(yaml.SafeDumper):
    """`SafeDumper` without aliases, whose floats are floats for YAML 1.1 readers too."""

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
# A string that YAML 1.1 or 1.2 would read as a number or a boolean is written in quotes.
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}
