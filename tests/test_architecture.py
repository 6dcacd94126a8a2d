"""The import law: rooms import leaves and themselves; only the roof knows every room. So no cycle can arise."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "harness"
ROOF = {"commands", "assignment"}  # folders of the roof: the command line, and what `harness verify` measures
ROOMS = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()} - ROOF
LEAVES = {
    "errors",
    "faults",
    "values",
    "randomness",
    "files",
    "yamlfile",
    "config",
    "runfolder",
    "interrupts",
    "environment",
    "style",
    "spread",
}
# The drawn exception: what reads runs back reads our journal.
READS_THE_JOURNAL = {"search", "report"}
FOREIGN = {
    "training": {"timm", "wandb", "click", "matplotlib"},
    "vision": {"wandb", "click"},
    "tracking": {"torch", "timm", "click"},
    "search": {"torch", "wandb", "timm"},
    "report": {"torch", "wandb", "timm", "click", "matplotlib"},
}


def imports(path):
    """Every dotted name that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name):
    words = name.split(".")
    return words[1] if words[0] == "harness" and len(words) > 1 else None


@pytest.mark.parametrize("room", sorted(ROOMS - {"recipes"}))
def test_a_room_imports_only_leaves_and_itself(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            part = part_of(name)
            allowed = (
                LEAVES | {room, None} | ({"tracking"} if room in READS_THE_JOURNAL and "journal" in name else set())
            )
            assert part in allowed or name == "harness.tracking", f"{path.relative_to(PACKAGE)} imports {name}"


def test_a_leaf_imports_no_room():
    for leaf in LEAVES:
        for name in imports(PACKAGE / f"{leaf}.py"):
            assert part_of(name) in LEAVES | {None}, f"{leaf}.py imports {name}"


@pytest.mark.parametrize("room", sorted(FOREIGN.keys() & ROOMS))
def test_a_room_keeps_to_its_own_libraries(room):
    for path in (PACKAGE / room).rglob("*.py"):
        if path.name.startswith("wandb_"):
            continue
        for name in imports(path):
            assert name.split(".")[0] not in FOREIGN[room], f"{path.relative_to(PACKAGE)} imports {name}"


def test_only_the_tracking_rooms_wandb_files_import_wandb():
    for path in PACKAGE.rglob("*.py"):
        if any(name.split(".")[0] == "wandb" for name in imports(path)):
            assert path.parent.name == "tracking", path
            assert path.name.startswith("wandb_"), path
        if any(name.split(".")[0] == "wandb_workspaces" for name in imports(path)):
            assert path.name == "wandb_report.py", path


def test_help_needs_none_of_the_heavy_libraries():
    import subprocess
    import sys

    code = "import sys; sys.argv = ['harness', 'run', '--help']\nimport harness.cli\ntry: harness.cli.main()\nexcept SystemExit: pass\nprint(sorted({'torch', 'timm', 'wandb', 'matplotlib', 'sklearn', 'plotly', 'jinja2'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--lr-max" in done.stdout


FORBIDDEN = {"pickle", "marshal", "shelve", "joblib", "dill"}


def test_nothing_runs_code_from_a_file():
    """A static gate: no unpickling, no eval, no shell, no unsafe YAML, no unfiltered archive."""
    for path in PACKAGE.rglob("*.py"):
        assert not FORBIDDEN & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in {"eval", "exec", "os.system", "yaml.load", "extractall"}, f"{path}: {name}"
            assert words.get("shell", "False") == "False", path
            if name == "torch.load":
                assert words.get("weights_only") == "True", path
            if name.endswith(".extractall"):
                assert "filter" in words, path
