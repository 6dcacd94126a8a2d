"""The import rule: a package imports only packages below it, and each library stays behind its wall."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "harness"
# From the bottom to the top: a package may import itself and those that stand before it.
ORDER = [
    "utils",
    "config",
    "tracking",
    "data",
    "models",
    "training",
    "evaluation",
    "lr_finder",
    "reporting",
    "runs",
    "sweep",
    "checks",
    "cli",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
# Which folders and files may import a library; every other file of the package may not.
WALLS = {
    "wandb": ["tracking/wandb/"],
    "wandb_workspaces": ["tracking/wandb/panels.py", "tracking/wandb/workspace.py"],
    "tensorboard": ["tracking/backends/tensorboard.py"],
    "mlflow": ["tracking/backends/mlflow.py"],
    "trackio": ["tracking/backends/trackio.py"],
    "click": ["cli/"],
    "matplotlib": ["reporting/figures/"],
}
NO_TORCH = ["utils/", "config/", "tracking/", "sweep/", "reporting/html/"]


@functools.cache
def parse(path):
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """Return every dotted name that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def test_the_packages_are_those_of_the_order():
    assert sorted(ORDER) == sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_package_imports_only_packages_below_it(path):
    rank = ORDER.index(path.relative_to(PACKAGE).parts[0])
    for name in imports(path):
        words = name.split(".")
        if words[0] == "harness" and len(words) > 1:
            assert words[1] in ORDER[: rank + 1], f"{relative(path)} imports {name}"


@pytest.mark.parametrize("library", sorted(WALLS))
def test_a_library_is_imported_only_behind_its_wall(library):
    for path in PACKAGE.rglob("*.py"):
        if any(name.split(".")[0] == library for name in imports(path)):
            assert any(relative(path).startswith(place) for place in WALLS[library]), relative(path)


@pytest.mark.parametrize("place", NO_TORCH)
def test_torch_is_not_imported_in(place):
    for path in (PACKAGE / place).rglob("*.py"):
        assert not {"torch", "torchvision", "timm"} & {name.split(".")[0] for name in imports(path)}, relative(path)


def test_metrics_need_numpy_only():
    libraries = {name.split(".")[0] for name in imports(PACKAGE / "evaluation/metrics.py")}
    assert libraries <= {"harness", "numpy"} | set(sys.stdlib_module_names)


def test_there_is_no_import_cycle():
    graph = {}
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    for path, module in names.items():
        tree = parse(path)
        at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = set()
        for node in at_the_top:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = found & set(names.values())
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in done:
            return
        open_.append(module)
        for other in sorted(graph[module]):
            visit(other)
        open_.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["sweep", "--help"], ["evaluate", "--help"]])
def test_help_imports_no_heavy_library(words):
    heavy = {"torch", "timm", "wandb", "matplotlib", "sklearn", "plotly", "jinja2", "numpy"}
    code = (
        f"import sys; sys.argv = ['harness', *{words!r}]\nimport harness.cli.main\ntry: harness.cli.main.main()\n"
        f"except SystemExit: pass\nprint(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage:" in done.stdout


@pytest.mark.slow
def test_a_run_imports_wandb_before_torch(tmp_path):
    """After torch it takes twice as long."""
    code = (
        "import sys; sys.argv = ['harness', 'run', '--recipe', 'digits', '--model', 'no_such_model', '--wandb', 'offline']\n"
        "import harness.cli.main\ntry: harness.cli.main.main()\nexcept SystemExit: pass\n"
        "names = list(sys.modules); print(names.index('wandb.apis.public') < names.index('torch'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "True"


FORBIDDEN = {"pickle", "marshal", "shelve", "joblib", "dill"}


def test_nothing_runs_code_from_a_file():
    """A static gate: no unpickling, no eval, no shell, no unsafe YAML, no unfiltered archive."""
    for path in PACKAGE.rglob("*.py"):
        assert not FORBIDDEN & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in {"eval", "exec", "os.system", "yaml.load", "extractall"}, f"{path}: {name}"
            assert words.get("shell", "False") == "False", path
            if name == "torch.load":
                assert words.get("weights_only") == "True", path
            if name.endswith(".extractall"):
                assert "filter" in words, path


def test_no_two_functions_or_classes_share_a_name():
    """Commands of the command line are named after what they call; every other public name means one thing."""
    places = {}
    for path in FILES:
        if relative(path).startswith("cli/"):
            continue
        for node in parse(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
