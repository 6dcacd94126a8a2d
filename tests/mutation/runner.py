"""Make mistakes in copies of the tree, and see which of them the tests notice."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.mutation.operators import Mutant, find_mutants, is_other_program
from tests.mutation.server import LIBRARIES, TestServer

ROOT = Path(__file__).parents[2]
CACHE = ".mutation"  # not committed
MAP, RESULT = "map.json", "result.json"
# Made by tools and by runs, in the root of the tree; the package has folders named `runs` and `wandb`, too.
NOT_COPIED = (".git", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", ".venv", "venv", "runs", "data", "wandb", "artifacts", "site", CACHE)  # fmt: skip
PYTEST = (
    "-n", "0", "-p", "no:cacheprovider", "-x", "--tb", "line",
    "-W", "ignore::pytest.PytestConfigWarning", "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip
FIRST_SECONDS = 60.0  # for the imports of a run of tests, beside what its tests take
SLOW_SECONDS = 600.0  # for slow tests
TIME_LIMIT = "the time limit"


@dataclass(frozen=True)
class Change:
    """A mistake to be made: replacements in one file, and the tests to run, in this order.

    Attributes:
        path: of the file, relative to the root.
        edits: (start, end, replacement) in bytes of the file, in increasing order.
        seconds: that the tests take without it.
        is_complete: whether all tests that execute the changed line are among them.
    """

    name: str
    path: str
    edits: tuple[tuple[int, int, bytes], ...]
    tests: tuple[str, ...]
    seconds: float = 60.0
    is_complete: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, source: bytes) -> bytes:
        """Return the file with the mistake."""
        for start, end, replacement in reversed(self.edits):
            source = source[:start] + replacement + source[end:]
        return source


@dataclass(frozen=True)
class Outcome:
    """What the tests have said of a mistake.

    Attributes:
        verdict: `noticed`, `survived`, `untested` (no test executes the line), `equivalent` (judged by a person), or
            `unreliable` (the test that fails does so without the mistake).
        by: the test that failed, or why else it was noticed.
    """

    name: str
    path: str
    verdict: str
    by: str
    seconds: float
    tests: int
    is_complete: bool
    facts: Mapping[str, Any]


# --- which tests execute which lines


@dataclass(frozen=True)
class LineMap:
    """Which tests execute each line.

    Attributes:
        lines: path of a file -> line -> tests.
        tests: test -> seconds.
        digests: path -> digest of the file at the time.
    """

    lines: Mapping[str, Mapping[str, Sequence[str]]]
    tests: Mapping[str, float]
    digests: Mapping[str, str]

    def tests_of(self, mutant: Mutant, source: bytes, budget: float, package: str) -> tuple[list[str], bool]:
        """Return the tests that execute a line, the module's own, then its package's, then the quickest, and whether these are all.

        A line that is executed at import time counts for the test that happens to import its file: all of the file are taken.

        Args:
            source: of the file.
            budget: seconds that the tests may take together; the first is taken in any case.
        """
        by_line = self.lines.get(f"{package}/{mutant.path}", {})
        last_line = source.count(b"\n", 0, mutant.end) + 1
        lines = range(mutant.line, last_line + 1) if is_in_function(source, mutant.line) else ()
        names = {name for line in lines for name in by_line.get(str(line), ())}
        names = names or {name for tests in by_line.values() for name in tests}
        own = mirrored(mutant.path)
        chosen: list[str] = []
        spent = 0.0
        folder = f"tests/{mutant.path.partition('/')[0]}/"

        def rank(name: str) -> tuple[int, float, str]:
            file = name.partition("::")[0]
            return (file != own) + (not file.startswith(folder)), self.tests.get(name, 1.0), name

        for name in sorted(names, key=rank):
            spent += self.tests.get(name, 1.0)
            if chosen and spent > budget:
                return chosen, False
            chosen.append(name)
        return chosen, True


def is_in_function(source: bytes, line: int) -> bool:
    """Return whether a line is in the body of a function, so that it is not executed when the file is imported."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return any(node.body[0].lineno <= line <= (node.end_lineno or 0) for node in functions)


def mirrored(path: str) -> str:
    """Return the file of tests of a module: tests/training/test_loop.py of training/loop.py."""
    folder, _, name = path.rpartition("/")
    return f"tests/{folder}/test_{name}" if folder else f"tests/test_{name}"


def digest(content: bytes) -> str:
    """Return what tells two versions of a file apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def make_map(root: Path, words: Sequence[str] = (), package: str = "harness") -> LineMap:
    """Run the tests in a copy of the tree, and note which of them executes which line.

    Args:
        words: for pytest: which tests, how many processes.
    """
    with copied(root) as tree, tempfile.TemporaryDirectory() as folder:
        (tree / "sitecustomize.py").write_text("from tests.mutation import lines\n\nlines.start()\n")
        environment = {**environment_of(tree), "HARNESS_MUTATION_LINES": folder, "PYTEST_ADDOPTS": ""}
        command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.contexts", "--tb", "no", "--timeout", "900"]
        subprocess.run([*command, *words], cwd=tree, env=environment, check=False)
        documents = {
            kind: [json.loads(path.read_text()) for path in Path(folder).glob(f"{kind}-*.json")]
            for kind in ("lines", "tests")
        }
        digests = {
            path.relative_to(tree).as_posix(): digest(path.read_bytes()) for path in (tree / package).rglob("*.py")
        }
    return join(documents["lines"], documents["tests"], digests)


def join(lines: Sequence[Mapping], tests: Sequence[Mapping], digests: Mapping[str, str]) -> LineMap:
    """Return the map of what single processes have noted; what a shared fixture executes counts for each of its tests."""
    seconds: dict[str, float] = {}
    users: dict[str, set[str]] = {}
    for document in tests:
        for name, facts in document.items():
            seconds[name] = round(max(seconds.get(name, 0.0), facts["seconds"]), 3)
            for fixture in facts["fixtures"]:
                users.setdefault(fixture, set()).add(name)
    joined: dict[str, dict[str, set[str]]] = {}
    for document in lines:
        for context, files in document.items():
            names = users.get(context, set()) if context.startswith("fixture ") else {context}
            for path, numbers in files.items():
                for number in numbers:
                    joined.setdefault(path, {}).setdefault(str(number), set()).update(names)
    listed = {path: {line: sorted(names) for line, names in by_line.items()} for path, by_line in joined.items()}
    return LineMap(listed, seconds, digests)


def save_map(found: LineMap, path: Path) -> None:
    """Write a map; each test is written once, and named by its number."""
    names = sorted({name for by_line in found.lines.values() for tests in by_line.values() for name in tests})
    numbers = {name: number for number, name in enumerate(names)}
    lines = {
        path: {line: [numbers[name] for name in tests] for line, tests in by_line.items()}
        for path, by_line in found.lines.items()
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"names": names, "lines": lines, "tests": found.tests, "digests": found.digests}))


def read_map(path: Path) -> LineMap:
    """Read what `save_map` has written."""
    document = json.loads(path.read_text())
    names = document["names"]
    lines = {
        path: {line: [names[number] for number in tests] for line, tests in by_line.items()}
        for path, by_line in document["lines"].items()
    }
    return LineMap(lines, document["tests"], document["digests"])


# --- which mistakes


def sample(root: Path, count: int, seed: int, package: str = "harness", only: str = "") -> list[Mutant]:
    """Return random mistakes: a random line of the package, then one of the mistakes that can be made in it.

    Args:
        only: the beginning of the paths below the package.
    """
    draw, by_line = random.Random(seed), {}
    for path in sorted((root / package).rglob("*.py")):
        name = path.relative_to(root / package).as_posix()
        for mutant in find_mutants(name, path.read_bytes()) if name.startswith(only) else ():
            by_line.setdefault((name, mutant.line), []).append(mutant)
    sources = {name: (root / package / name).read_bytes() for name, _ in by_line}
    chosen: list[Mutant] = []
    for place in draw.sample(sorted(by_line), len(by_line)):
        valid = [mutant for mutant in by_line[place] if is_other_program(mutant, sources[place[0]])]
        if valid and len(chosen) < count:
            chosen.append(draw.choice(valid))
        if len(chosen) == count:
            break
    return chosen


def of_result(root: Path, log: Path, package: str = "harness") -> list[Mutant]:
    """Return the mistakes that a result (JSON Lines) names, in its order; those whose code has changed since are left out.

    A sample is another one as soon as a line is added anywhere. Of mistakes of one name, which a function may have on
    several lines, the one that is nearest to the recorded line is meant.
    """
    recorded = {outcome["name"]: outcome for outcome in map(json.loads, log.read_text().splitlines())}
    by_key: dict[str, list[Mutant]] = {}
    for path in sorted({outcome["path"] for outcome in recorded.values()}):
        if (root / path).is_file():
            for mutant in find_mutants(path.removeprefix(f"{package}/"), (root / path).read_bytes()):
                by_key.setdefault(mutant.key, []).append(mutant)
    return [
        min(by_key[name], key=lambda mutant: abs(mutant.line - outcome["facts"].get("line", mutant.line)))
        for name, outcome in recorded.items()
        if name in by_key
    ]


def change_of(mutant: Mutant, root: Path, lines: LineMap, budget: float, package: str = "harness") -> Change:
    """Return a mistake with the tests that execute its lines."""
    path = f"{package}/{mutant.path}"
    source = (root / path).read_bytes()
    if lines.digests.get(path) != digest(source):
        raise SystemExit(
            f"{path} has changed since the map of tests was made; make it again: python -m tests.mutation map"
        )
    tests, is_complete = lines.tests_of(mutant, source, budget, package)
    seconds = sum(lines.tests.get(name, 1.0) for name in tests)
    edits = ((mutant.start, mutant.end, mutant.replacement.encode()),)
    return Change(mutant.key, path, edits, tuple(tests), seconds, is_complete, asdict(mutant))


def with_new_tests(change: Change, root: Path, lines: LineMap) -> Change:
    """Return a mistake with the module's own file of tests in front, where it has tests that the map does not know."""
    own = mirrored(change.path.partition("/")[2])
    if not (root / own).is_file():
        return change
    named = set(re.findall(r"^def (test_\w+)", (root / own).read_text(), re.M))
    known = {name.partition("::")[2] for name in lines.tests if name.startswith(f"{own}::")}
    new = tuple(f"{own}::{name}" for name in sorted(named - known))
    return replace(change, tests=(*new, *change.tests), seconds=change.seconds + 10.0 * len(new))


def noticed_before(log: Path, changes: Sequence[Change]) -> dict[str, Outcome]:
    """Return the outcomes of a log that need not be found again: mistakes of these that were noticed; none without a log.

    That the time was over may say something of the machine, so that is not one of them.
    """
    names = {change.name for change in changes}
    lines = log.read_text().splitlines() if log.is_file() else []
    outcomes = (Outcome(**json.loads(line)) for line in lines)
    known = (each for each in outcomes if each.name in names and each.by != TIME_LIMIT)
    return {each.name: each for each in known if each.verdict in ("noticed", "equivalent")}


def listed_changes(root: Path, ids: Sequence[str] = ()) -> list[Change]:
    """Return the listed mistakes, or those of them that are named."""
    from tests.mutation.listed import LISTED

    changes = []
    for each in LISTED:
        if ids and each.id not in ids:
            continue
        path = f"harness/{each.path}"
        source = (root / path).read_bytes()
        edits = []
        for old, new in each.edits:
            start = source.index(old.encode())
            edits.append((start, start + len(old.encode()), new.encode()))
        facts = {"id": each.id, "edits": [list(edit) for edit in each.edits]}
        changes.append(Change(each.id, path, tuple(sorted(edits)), each.tests, 300.0, True, facts))
    return changes


# --- the runs


@contextlib.contextmanager
def copied(root: Path) -> Iterator[Path]:
    """Copy the tree to a temporary folder for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder) / "tree"
        ignore_in_root, ignore = shutil.ignore_patterns(*NOT_COPIED), shutil.ignore_patterns("__pycache__")

        def ignored(folder: str, names: list[str]) -> set[str]:
            return set(ignore(folder, names)) | set(ignore_in_root(folder, names) if Path(folder) == root else ())

        shutil.copytree(root, tree, ignore=ignored, symlinks=True)
        yield tree


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment in which Python imports the package of a tree."""
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and Path(part) != ROOT]
    path = os.pathsep.join([str(tree), *others])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run_tests(server: TestServer, words: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run tests until the first fails; return pytest's exit status and the failed test.

    Args:
        words: for pytest.
        seconds: after which it is given up, with its children; the status is None then.
    """
    code, output = server.run([*PYTEST, *words], seconds)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$", output, re.M)
    return code, failed[-1] if failed else ""


class Runner:
    """Makes mistakes, several at a time, each process of tests in a copy of the tree of its own.

    Args:
        jobs: copies.
        equivalent: mistakes by name that a person has found to change nothing -> why.
        report: receives each outcome.
        libraries: modules that are imported once, before the tests run.
        slow: whether slow tests run too, of those that a change names.
    """

    def __init__(
        self,
        root: Path,
        jobs: int,
        equivalent: Mapping[str, str] | None = None,
        report: Callable[[Outcome], None] = print,
        libraries: Sequence[str] = LIBRARIES,
        slow: bool = False,
    ) -> None:
        self.root, self.jobs, self.equivalent, self.report = root, jobs, equivalent or {}, report
        self.libraries, self.slow = libraries, slow
        self._reliable: dict[str, bool] = {}
        self._lock = threading.Lock()

    def run(self, changes: Sequence[Change]) -> list[Outcome]:
        """Return the outcome of each mistake."""
        with contextlib.ExitStack() as stack:
            places = []
            for _ in range(self.jobs):
                tree = stack.enter_context(copied(self.root))
                server = TestServer(tree, environment_of(tree), self.libraries)
                stack.callback(server.close)
                places.append((tree, server))

            def one(change: Change) -> Outcome:
                with self._lock:
                    place = places.pop()
                try:
                    outcome = self._one(change, *place)
                finally:
                    with self._lock:
                        places.append(place)
                self.report(outcome)
                return outcome

            with ThreadPoolExecutor(self.jobs) as pool:
                return list(pool.map(one, changes))

    def _one(self, change: Change, tree: Path, server: TestServer) -> Outcome:
        began = time.monotonic()
        verdict, by = self._verdict(change, tree, server)
        seconds = round(time.monotonic() - began, 1)
        return Outcome(
            change.name, change.path, verdict, by, seconds, len(change.tests), change.is_complete, change.facts
        )

    def _verdict(self, change: Change, tree: Path, server: TestServer) -> tuple[str, str]:
        if change.name in self.equivalent:
            return "equivalent", self.equivalent[change.name]
        if not change.tests:
            return "untested", ""
        file = tree / change.path
        original = file.read_bytes()
        file.write_bytes(change.apply(original))
        try:
            seconds = FIRST_SECONDS + 4 * change.seconds + (SLOW_SECONDS if self.slow else 0)
            code, failed = run_tests(server, self._words(change.tests), seconds)
        finally:
            file.write_bytes(original)
        if code is None:
            return "noticed", TIME_LIMIT
        if code == 0:
            return "survived", ""
        if failed and not self._is_reliable(failed, server):
            return "unreliable", failed
        return "noticed", failed or f"exit status {code} of pytest"

    def _words(self, tests: Sequence[str]) -> list[str]:
        return ["-m", "slow or not slow", *tests] if self.slow else [*tests]

    def _is_reliable(self, test: str, server: TestServer) -> bool:
        """Return whether a test, with any parameters, succeeds without a mistake; so does a file that can be imported."""
        test = test.partition("[")[0]
        if test not in self._reliable:
            self._reliable[test] = run_tests(server, self._words([test]), FIRST_SECONDS + SLOW_SECONDS)[0] == 0
        return self._reliable[test]


# --- the result


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the numbers of mistakes by verdict, in all and by package, and the share of those that count."""
    packages: dict[str, Counter] = {}
    for outcome in outcomes:
        package = outcome.path.split("/")[1] if outcome.path.count("/") > 1 else outcome.path.split("/")[0]
        packages.setdefault(package, Counter())[outcome.verdict] += 1
    total: Counter = sum(packages.values(), Counter())
    return {"total": _share(total), "packages": {name: _share(packages[name]) for name in sorted(packages)}}


def _share(counts: Counter) -> dict[str, Any]:
    noticed, missed = counts["noticed"], counts["survived"] + counts["untested"]
    share = round(noticed / (noticed + missed), 3) if noticed + missed else None
    return {**{verdict: counts[verdict] for verdict in sorted(counts)}, "noticed of those that count": share}


def to_json(outcomes: Sequence[Outcome], **facts: Any) -> str:
    """Return the result as JSON."""
    return json.dumps({**facts, **summarise(outcomes), "mistakes": [asdict(each) for each in outcomes]}, indent=1)


def table(document: Mapping[str, Any]) -> str:
    """Return the summary by package and the survivors of a result as Markdown."""
    rows = ["| package | noticed | not noticed | equivalent | share |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, counts in [*document["packages"].items(), ("all", document["total"])]:
        missed = counts.get("survived", 0) + counts.get("untested", 0)
        share = counts["noticed of those that count"]
        shown = "–" if share is None else f"{100 * share:.0f} %"
        rows.append(f"| {name} | {counts.get('noticed', 0)} | {missed} | {counts.get('equivalent', 0)} | {shown} |")
    survivors = [each for each in document["mistakes"] if each["verdict"] in ("survived", "untested", "unreliable")]
    if survivors:
        rows += ["", "| not noticed | in | mistake |", "| --- | --- | --- |"]
    for each in survivors:
        facts = each["facts"]
        place = f"{each['path']}:{facts['line']} {facts['scope']}" if "line" in facts else each["path"]
        text = f"{facts['original']} → {facts['replacement']}" if "original" in facts else each["name"]
        rows.append(f"| {each['verdict']} | {_cell(place)} | {_cell(facts.get('operator', ''))}: `{_cell(text)}` |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    one_line = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return one_line if len(one_line) <= 120 else f"{one_line[:119]}…"
