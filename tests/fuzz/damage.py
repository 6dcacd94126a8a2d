"""Damages of a run directory: what a disk, a copy, a user or an attacker may do to one of its files."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.utils.checksums import write_checked_json
from harness.utils.files import sha256

SIGNED = "(signed anew)"
PLUGIN = "planted_plugin"  # a module beside the run; whoever imports it creates a file
DEEP = "[" * 100_000 + "]" * 100_000
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\u202e\r\nsecond line"
VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 10**400, -(2**63), 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "text", "1", "NaN", "nan",
    ESCAPES, "x" * 100_000, "../../elsewhere", "/etc/passwd", "<script>alert(1)</script>", "=1+1", "\ud800", "harness run; touch canary",
    [], [[]], [None], [1, "a", None], ["a"] * 1000, {}, {"a": {}}, {"": None}, {"state": []}, [{"state": 5}],
]  # fmt: skip
PATHS = ("checkpoints/last.pt", "checkpoints/previous.pt")


def sign_anew(path: Path, document: dict | None = None) -> None:
    """Make the checksums of a run accept a file, as somebody does who can write all of them; they are no signatures.

    Args:
        document: the values of a JSON file, which is written with the checksum of these.
    """
    run = next(
        parent for parent in (path, *path.parents) if (parent / "config.yaml").exists() or parent.parent.name == "runs"
    )
    if document is not None:
        write_checked_json(path, {key: part for key, part in document.items() if key != "checksum"})
    (run / "SHA256SUMS").unlink(missing_ok=True)


def files_of(run: Path) -> list[Path]:
    """Return every file and folder of a run directory, sorted; of many images of one folder the first three."""
    found = sorted(path for path in run.rglob("*") if path.parent.name != "media")
    return [*found, *sorted((run / "media").glob("*.png"))[:3]]


def damage(run: Path, bait: Path, draw: random.Random, only_leaves: bool = False) -> str:
    """Damage one file of a run directory, and return what was done.

    Args:
        bait: a folder outside, which nothing may read from or write to.
        only_leaves: change one value of a checkpoint or of `model.json` and sign it anew, or remove `config.yaml`.
    """
    if only_leaves:
        names = [name for name in (*PATHS, "checkpoints/model.json") if (run / name).is_file()]
        name = draw.choice([*3 * names, "config.yaml"])
        kind: Callable[[Path, Path, random.Random], str] = remove if name == "config.yaml" else leaf
        return f"{kind.__name__} {name}: {kind(run / name, bait, draw)}"
    path = draw.choice(files_of(run))
    name = path.relative_to(run).as_posix()
    kinds: list[Callable[[Path, Path, random.Random], str]] = [remove, link, link, special, swap]
    if path.is_file():
        kinds += [cut, cut, flip, flip, noise, text]
        if path.suffix in (".json", ".jsonl", ".yaml"):
            kinds += 6 * [value]
        if name in PATHS:
            kinds += 3 * [state, leaf]
        if name == "checkpoints/model.json":
            kinds += 4 * [leaf]
        if path.suffix == ".safetensors":
            kinds += 2 * [header]
        if path.suffix == ".csv":
            kinds += 3 * [cell]
        if name in ("config.yaml", "journal.jsonl", "checkpoints/model.json"):
            kinds += 2 * [plant]
    kind = draw.choice(kinds)
    return f"{kind.__name__} {name}: {kind(path, bait, draw)}"


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove(path: Path, bait: Path, draw: random.Random) -> str:
    _clear(path)
    return "gone"


def link(path: Path, bait: Path, draw: random.Random) -> str:
    """Replace it by a link: to a file or a folder outside, to nothing, to itself, to what it was."""
    target = draw.choice([bait / "secret.txt", bait / "secret.png", bait, bait / "nothing", path, "copy"])
    if target == "copy":
        target = bait / "copy"
        _clear(target)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    _clear(path)
    path.symlink_to(target)
    return f"-> {target.name}"


def special(path: Path, bait: Path, draw: random.Random) -> str:
    """Replace it by a directory, an empty or a full one, by a pipe, by a device, or a folder by a file."""
    was_folder = path.is_dir()
    _clear(path)
    kind = draw.choice(["file", "fifo"] if was_folder else ["directory", "full directory", "fifo", "device"])
    match kind:
        case "file":
            path.write_bytes(b"text\n")
        case "directory":
            path.mkdir()
        case "full directory":
            path.mkdir()
            (path / "x").write_bytes(b"x")
        case "fifo":
            os.mkfifo(path)
        case "device":
            try:
                os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
            except OSError:
                os.mkfifo(path)
    return kind


def swap(path: Path, bait: Path, draw: random.Random) -> str:
    """Replace it by another file of the run."""
    run = next(parent for parent in path.parents if parent.parent.name == "runs")
    others = [other for other in files_of(run) if other.is_file() and other != path]
    other = draw.choice(others)
    content = other.read_bytes()
    _clear(path)
    path.write_bytes(content)
    return f"by {other.relative_to(run)}"


def cut(path: Path, bait: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    at = draw.choice([0, 1, max(0, len(content) - 1), draw.randrange(len(content) + 1)])
    path.write_bytes(content[:at])
    return f"at byte {at}"


def flip(path: Path, bait: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes() or b"\0")
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at}"


def noise(path: Path, bait: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes() or b"\0")
    at, count = draw.randrange(len(content)), draw.randrange(1, 200)
    content[at : at + count] = draw.randbytes(count)
    path.write_bytes(content)
    return f"{count} bytes at {at}"


def text(path: Path, bait: Path, draw: random.Random) -> str:
    """Replace the content by text of another kind."""
    content = draw.choice([
        "null", "[]", "{}", "5", '"text"', "NaN", DEEP, '{"a":' * 100_000, "\xff\xfe\x00", ESCAPES, "\0" * 1000,
        "<html></html>", "- a\n- b\n", '{"state": "running"}\n', '{"kind": "header"}\n', "a,b\n1,2\n", "\n\n\n", "{" * 100,
    ])  # fmt: skip
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    return f"{content[:20]!r}"


def value(path: Path, bait: Path, draw: random.Random) -> str:
    """Replace one value in a JSON or YAML file, or in one line of a journal, by one of another type; or rename its key."""
    lines = path.read_text().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_text()]
    at = draw.randrange(len(lines))
    document = yaml.safe_load(lines[at]) if path.suffix == ".yaml" else json.loads(lines[at])
    containers: list[Any] = []

    def collect(part: Any) -> None:
        if isinstance(part, dict | list) and part:
            containers.append(part)
            for inner in part.values() if isinstance(part, dict) else part[:20]:
                collect(inner)

    collect(document)
    container = draw.choice(containers[: draw.choice([1, 4, len(containers)])] or [{"a": 1}])
    key = draw.choice(list(container)) if isinstance(container, dict) else draw.randrange(len(container))
    new = draw.choice(VALUES)
    action = draw.choice(["replace", "replace", "replace", "remove", "deep", "rename"])
    match action:
        case "remove":
            del container[key]
        case "rename" if isinstance(container, dict):
            container[draw.choice(["", "x", ESCAPES, "__class__", "plugin"])] = container.pop(key)
        case "deep":
            container[key] = "@DEEP@"
        case _:
            container[key] = new
    is_signed = draw.random() < 0.5 and isinstance(document, dict) and action != "deep"
    if is_signed and path.suffix == ".json":
        sign_anew(path, document)
        return f"line {at + 1}, {key!r}: {action} {str(new)[:30]!r} {SIGNED}"
    if path.suffix == ".yaml":
        try:
            changed = yaml.safe_dump(document, sort_keys=False)
        except yaml.YAMLError:
            changed = json.dumps(document)
    else:
        changed = json.dumps(document) + "\n"
    lines[at] = changed.replace('"@DEEP@"', DEEP).replace("'@DEEP@'", DEEP).replace("@DEEP@", DEEP)
    path.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    if is_signed:
        sign_anew(path)
    return f"line {at + 1}, {key!r}: {action} {str(new)[:30]!r}{f' {SIGNED}' if is_signed else ''}"


def plant(path: Path, bait: Path, draw: random.Random) -> str:
    """Name a plug-in that lies beside the run."""
    plugin = draw.choice([[PLUGIN], PLUGIN, [f"../{PLUGIN}"], ["os"], [f"{PLUGIN}.x"], ["antigravity"]])
    content = path.read_text()
    if path.suffix == ".yaml":
        document = yaml.safe_load(content)
        document["plugin"] = plugin
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    else:
        first, newline, rest = content.partition("\n") if path.suffix == ".jsonl" else (content, "", "")
        document = json.loads(first)
        document["config"]["plugin"] = plugin
        path.write_text(json.dumps(document) + newline + rest)
    sign_anew(path, document if path.suffix == ".json" else None)
    return f"{plugin} {SIGNED}"


def state(path: Path, bait: Path, draw: random.Random) -> str:
    """Change one entry of a checkpoint, which the index then vouches for: as somebody does who can write both."""
    content = torch.load(path, weights_only=True)
    containers: list[tuple[str, dict]] = []

    def collect(name: str, part: Any) -> None:
        if isinstance(part, dict) and part:
            containers.append((name, part))
            for key, inner in part.items():
                collect(f"{name}/{key}", inner)

    collect("", content)
    name, container = draw.choice(containers[: draw.choice([1, 4, len(containers)])])
    key = draw.choice(list(container))
    new = draw.choice([*VALUES, torch.zeros(1, 2), torch.tensor(float("nan")), torch.zeros(3, dtype=torch.int64)])
    if name == "/config" and draw.random() < 0.3:
        key, new = "plugin", [PLUGIN]
    if draw.random() < 0.2:
        del container[key]
    else:
        container[key] = new
    _save_listed(path, content)
    return f"{name}/{key}: {str(new)[:30]!r}"


def _save_listed(path: Path, content: Any) -> None:
    """Write a checkpoint, and the index that vouches for it."""
    torch.save(content, path)
    index = path.parent / "index.json"
    if index.is_file():
        entries = json.loads(index.read_text())
        for entry in entries["checkpoints"]:
            entry.update({"sha256": sha256(path), "bytes": path.stat().st_size})
        index.write_text(json.dumps(entries))


def _leaves(name: str, part: Any) -> list[tuple[str, Any, Any]]:
    """Return (path, container, key) of each value that is no container, or an empty one."""
    keys = list(part) if isinstance(part, dict) else range(len(part))
    result = []
    for key in keys:
        inner = part[key]
        is_container = isinstance(inner, dict | list) and inner
        result += _leaves(f"{name}/{key}", inner) if is_container else [(f"{name}/{key}", part, key)]
    return result


def leaf(path: Path, bait: Path, draw: random.Random) -> str:
    """Change one value at any depth of `model.json` or of a checkpoint, with the checksums of the new content."""
    is_json = path.suffix == ".json"
    content = json.loads(path.read_text()) if is_json else torch.load(path, weights_only=True)
    leaves = _leaves("", content)
    # As often in each part, since most of the values are weights.
    part = draw.choice(sorted({"/".join(name.split("/")[:3]) for name, _, _ in leaves if name != "/checksum"}))
    name, container, key = draw.choice([one for one in leaves if "/".join(one[0].split("/")[:3]) == part])
    old = container[key]
    values = [*VALUES, ["x"], "evil", 7, -3]
    if isinstance(old, torch.Tensor):
        values = [
            *values[::6], old.to(torch.complex64), old.long(), old.double(), old.bool(), old.flatten()[:-1], old.to_sparse(),
            old.to("meta"), old.double() * float("nan"), old.reshape(-1, 1), old.new_zeros(0),
        ]  # fmt: skip
    new = draw.choice(values)
    container[key] = new
    if is_json:
        sign_anew(path, content)
    else:
        _save_listed(path, content)
        (path.parents[1] / "SHA256SUMS").unlink(missing_ok=True)
    return f"{name}: {str(new)[:30]!r} {SIGNED}"


def header(path: Path, bait: Path, draw: random.Random) -> str:
    """Change the header of a safetensors file: the length, an offset, a type, a shape or a name."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])
    name = draw.choice([key for key in about if key != "__metadata__"])
    kind = draw.choice(["length", "offset", "dtype", "shape", "name", "deep"])
    match kind:
        case "length":
            length = draw.choice([0, 1, 2**63, 2**31, length - 1, length + 1])
            path.write_bytes(length.to_bytes(8, "little") + content[8:])
            return kind
        case "offset":
            about[name]["data_offsets"] = draw.choice([[0, 2**62], [-1, 4], [8, 4], [0, 0], "x"])
        case "dtype":
            about[name]["dtype"] = draw.choice(["I64", "F16", "X", 5, None])
        case "shape":
            about[name]["shape"] = draw.choice([[2**62], [-1], [], "x", [0]])
        case "name":
            about["renamed"] = about.pop(name)
        case "deep":
            about[name]["shape"] = [[[[[[[[[1]]]]]]]]]
    changed = json.dumps(about).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    return kind


def cell(path: Path, bait: Path, draw: random.Random) -> str:
    """Change one cell of a table, or the number of its cells."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = draw.choice([rows[0], draw.choice(rows)])
    at = draw.randrange(len(row))
    new = draw.choice(["", "x", "nan", "-1", "2", "1e999", '"', ESCAPES, "a,b", "=1+1", "\0", "9" * 400, "x" * 200_000])
    row[at] = new
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return f"cell {at}: {new[:20]!r}"
