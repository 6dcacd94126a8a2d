"""What is built and installed: the wheel holds everything that the package reads, and starts without the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from harness.config.recipe import recipe_paths

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd, **environment):
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the checkout, built in a copy so that nothing is left in the tree."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files of the distribution are listed by git")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", out, cwd=source)
    [built] = out.iterdir()
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(about.replace("METADATA", "entry_points.txt")).decode())
    tracked = set(run("git", "ls-files", "-co", "--exclude-standard", "harness", cwd=ROOT).splitlines())
    assert names == {name for name in tracked if (ROOT / name).is_file()}
    assert {"harness/py.typed", *(f"harness/config/recipes/{name}.yaml" for name in recipe_paths())} <= names
    assert any(name.startswith("harness/reporting/html/templates/") for name in names)
    assert (metadata["Name"], metadata["Author"]) == ("vision-harness", "The harness developers")
    assert dict(scripts["console_scripts"]) == dict.fromkeys(("harness", "vision-harness"), "harness.__main__:main")
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert {"Documentation", "Source"} <= urls.keys() and all(url.startswith("https://") for url in urls.values())


@pytest.mark.slow
def test_an_installed_wheel_starts_and_reads_its_own_recipes(wheel, tmp_path):
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-cache-dir",
        "--target", target, wheel, cwd=tmp_path)  # fmt: skip
    path = {"PYTHONPATH": str(target)}
    assert "harness run --recipe digits" in run(sys.executable, "-m", "harness", "--help", cwd=tmp_path, **path)
    for script in ("harness", "vision-harness"):
        assert run(target / "bin" / script, "--version", cwd=tmp_path, **path).startswith("vision-harness ")
    code = (
        "import harness, harness.config.recipe as recipe\n"
        "print(harness.__file__)\n"
        "for name in recipe.recipe_paths(): print(name, recipe.make_config({}, name).epochs)"
    )
    file, *recipes = run(sys.executable, "-c", code, cwd=tmp_path, **path).splitlines()
    assert Path(file).is_relative_to(target)
    assert [line.split()[0] for line in recipes] == sorted(recipe_paths())
