"""Fuzz whole run directories: damage one file, run one command on it, and check what every command promises.

    python -m tests.fuzz.run_folders --cases 3000 --seed 0

The promise: the right result, or one line and a documented exit status. Never a traceback, a hang, another figure, code
that ran, a byte sent or written elsewhere. Every case is a function of its number, so that a failure is repeated by
`--only NUMBER`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.damage import PLUGIN, SIGNED, damage
from tests.support.forked import TINY, Ended, harness
from tests.support.in_process import run_in_process
from tests.support.wandb_server import KEY, Server

SECRET = "5ec2e7" * 6 + "abcd"
SETTINGS = [*TINY, "--epochs", "2", "--peak-epoch", "1", "--gallery", "2", "--checkpoint-every", "4"]
# Command -> how often it is drawn: seldom where it trains, draws figures or waits for a server.
COMMANDS = {
    "runs": 20, "report": 24, "report both": 5, "predict": 18, "explain": 6, "export": 14, "evaluate": 2, "evaluate .": 1,
    "evaluate last.pt": 2, "resume": 5, "resume by name": 2, "verify": 1, "sync": 1,
}  # fmt: skip
UNCOMPARED = ("sync", "verify")  # whose answers name the time or the server
STATUSES = {0, 2, 3, 4, 5, 6, 7, 8}
SECONDS = 300.0  # far beyond what a command takes on a busy machine
BAIT_COLOUR = (5, 194, 231)


@dataclass(frozen=True)
class Base:
    """What every case starts from.

    Attributes:
        folder: holds `runs` (a finished run `done`, an equal one `other`, a stopped one `stopped`) and a picture.
        results: command -> what it answers without damage; filled when it is first needed.
    """

    folder: Path
    results: dict[str, str] = dataclasses.field(default_factory=dict)

    def expected(self, command: str) -> str:
        """Return what a command answers on the undamaged run, or the digest of the weights that it writes."""
        if command not in self.results:
            copy = self.folder.parent / "undamaged"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.folder, copy)
            ended = harness(*words(command, copy), cwd=where(command, copy), check=0)
            self.results[command] = figures(command, copy, ended)
            shutil.rmtree(copy)
        return self.results[command]


@dataclass(frozen=True)
class Outcome:
    """The result of a case: its damage, its exit status, and what was wrong, empty where nothing was."""

    number: int
    command: str
    damage: str
    status: int
    wrong: str
    output: str = ""
    seconds: float = 0.0


def make_runs(folder: Path) -> None:
    """Make the runs that are damaged."""
    for name, fault in (("done", ""), ("stopped", "int@step=14")):
        harness("run", *SETTINGS, "--name", name, cwd=folder, fault=fault, check=130 if fault else 0)
    shutil.copytree(folder / "runs/done", folder / "runs/other")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / f"{PLUGIN}.py").write_text("open('CANARY', 'w').close()\n")


def target(command: str) -> str:
    return "stopped" if command.startswith("resume") else "done"


def where(command: str, folder: Path) -> Path:
    """Return the working directory of a command."""
    return folder / "runs" / target(command) if command == "evaluate ." else folder


def words(command: str, folder: Path) -> list[str]:
    """Return the arguments of `harness` for a command on the damaged run."""
    run, picture = f"runs/{target(command)}", "picture.png"
    return {
        "runs": ["runs"],
        "report": ["report", run],
        "evaluate": ["evaluate", run, "--gallery", "0", "--device", "cpu"],
        "evaluate .": ["evaluate", ".", "--gallery", "0", "--device", "cpu"],
        "evaluate last.pt": [
            "evaluate",
            f"{run}/checkpoints/last.pt",
            "--gallery",
            "0",
            "--device",
            "cpu",
            "-o",
            "out",
        ],
        "report both": ["report", run, "runs/other", "-o", "both.html"],
        "predict": ["predict", run, picture],
        "explain": ["explain", run, picture, "-o", "out"],
        "export": ["export", run, "--timm", "out"],
        "resume": ["run", "--resume", run],
        "resume by name": ["run", *SETTINGS, "--name", "stopped"],
        "verify": ["verify", run],
        "sync": ["sync", run],
    }[command]


def figures(command: str, folder: Path, ended: Ended) -> str:
    """Return what must be equal for a command that succeeds: its figures, or a digest of the weights that it writes."""
    match command:
        case "runs":
            return next(line for line in ended.out.splitlines() if line.startswith("other"))
        case "report":
            return str((folder / "runs/done/report.html").stat().st_size > 100_000)
        case "report both":
            return str((folder / "both.html").stat().st_size > 100_000)
        case "export":
            return hashlib.sha256((folder / "out/model.safetensors").read_bytes()).hexdigest()
        case "resume" | "resume by name":
            # With other settings in the damaged directory the run begins anew beside it, and its weights are the same.
            runs = [folder / "runs" / name for name in ("stopped-2", "stopped")]
            path = next(run for run in runs if run.is_dir()) / "checkpoints/model.safetensors"
            return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no weights"
    return ended.out


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder with their content."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command_of(number: int, seed: int) -> str:
    """Return the command of a case."""
    draw = random.Random(f"{seed}/{number}/command")
    return draw.choices(list(COMMANDS), list(COMMANDS.values()))[0]


def cases_of(commands: Iterable[str], count: int, seed: int = 0, first: int = 0) -> list[int]:
    """Return the numbers of the first `count` cases of some commands."""
    wanted = set(commands) & set(COMMANDS)
    return list(islice((number for number in itertools.count(first) if command_of(number, seed) in wanted), count))


def run_case(
    base: Base,
    number: int,
    work: Path,
    seed: int,
    variables: dict[str, str] | None = None,
    in_process: bool = False,
    only_leaves: bool = False,
) -> Outcome:
    """Damage a copy of the base and run one command on it.

    Args:
        in_process: run commands that do not train in this process, which is several times cheaper.
        only_leaves: see `damage`.
    """
    command, draw = command_of(number, seed), random.Random(f"{seed}/{number}/damage")
    folder, bait = work / "case", work / "bait"
    for path in (folder, bait, work / "case-logs", work / f"{target(command)}-logs"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    bait.mkdir()
    (bait / "secret.txt").write_text(SECRET)
    Image.new("RGB", (8, 8), BAIT_COLOUR).save(bait / "secret.png")
    run = folder / "runs" / target(command)
    if command == "evaluate .":
        shutil.copyfile(folder / f"{PLUGIN}.py", run / f"{PLUGIN}.py")
    done = damage(run, bait, draw, only_leaves)
    before = snapshot(bait)
    began = time.monotonic()
    run_command = run_in_process if in_process and not command.startswith(("resume", "sync")) else harness
    try:
        ended = run_command(*words(command, folder), cwd=where(command, folder), seconds=SECONDS, variables=variables)
    except AssertionError as hang:
        return Outcome(number, command, done, -1, "hang", str(hang)[-3000:])
    wrong = judge(base, command, folder, ended, snapshot(bait) == before, is_compared=SIGNED not in done)
    return Outcome(
        number, command, done, ended.code, wrong, ended.out[-1500:] + ended.err[-4000:], time.monotonic() - began
    )


def judge(base: Base, command: str, folder: Path, ended: Ended, is_untouched: bool, is_compared: bool) -> str:
    """Return which part of the promise a command broke; empty where it kept it."""
    output = ended.out + ended.err
    if list(folder.rglob("CANARY")):
        return "code ran"
    if not is_untouched:
        return "written elsewhere"
    if SECRET in output or any(SECRET.encode() in path.read_bytes() for path in readable(folder)):
        return "read from elsewhere"
    if "Traceback" in output or "bug in harness" in output:
        return "traceback"
    if any(not letter.isprintable() and letter != "\n" for letter in output):
        return "unprintable output"
    if ended.code not in STATUSES | ({9} if command == "verify" else set()):
        return f"status {ended.code}"
    if ended.code and ended.code != 9 and len(ended.errors) != 1:
        return f"{len(ended.errors)} error lines"
    if (
        ended.code == 0
        and is_compared
        and command not in UNCOMPARED
        and figures(command, folder, ended) != base.expected(command)
    ):
        return "another result"
    return ""


def readable(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def is_secret_sent(server: Server) -> bool:
    """Return whether the bait is among what a server received: its text, or its picture in another file."""
    stored = [*(one.files for one in server.runs.values()), *(one.files for one in server.artifacts.values())]
    for content in (content for files in stored for content in files.values()):
        if SECRET.encode() in content:
            return True
        if content.startswith(b"\x89PNG"):
            with Image.open(io.BytesIO(content)) as image:
                if image.convert("RGB").getpixel((0, 0)) == BAIT_COLOUR:
                    return True
    return False


def print_table(counts: Counter[tuple[str, str]], began: float) -> None:
    """Print how many cases of each command ended how, and the time so far."""
    for (command, what), count in sorted(counts.items()):
        print(f"{count:>6}  {command:<18} {what}")
    print(f"{sum(counts.values()):>6}  cases in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    """Run the cases, print every failure and a table of the outcomes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="cases of these commands only")
    parser.add_argument(
        "--leaves", action="store_true", help="change single values that are signed anew, or remove config.yaml"
    )
    parser.add_argument("--only", type=int, help="repeat one case and print its output")
    options = parser.parse_args()
    numbers = cases_of(options.commands.split(","), options.cases, options.seed, options.first)
    if options.only is not None:
        numbers = [options.only]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            os.environ[variable] = name
        base_folder = Path(name) / "base"
        base_folder.mkdir()
        make_runs(base_folder)
        base = Base(base_folder)
        counts: Counter[tuple[str, str]] = Counter()
        failures, slowest, began = 0, 0.0, time.monotonic()
        for count, number in enumerate(numbers, 1):
            with Server() as server:
                variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
                outcome = run_case(base, number, Path(name), options.seed, variables, True, options.leaves)
                if is_secret_sent(server):
                    outcome = dataclasses.replace(outcome, wrong="sent from elsewhere")
            counts[outcome.command, outcome.wrong or f"exit {outcome.status}"] += 1
            failures += bool(outcome.wrong)
            slowest = max(slowest, outcome.seconds)
            if outcome.wrong or options.only is not None:
                print(f"{number}: {outcome.command} after {outcome.damage}: {outcome.wrong}", flush=True)
                lines = outcome.output.strip().splitlines()
                print("\n".join(lines if options.only is not None else lines[-3:]), flush=True)
            if count % 250 == 0:
                print_table(counts, began)
        print_table(counts, began)
        print(f"{failures} failures, slowest {slowest:.1f} s")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
