"""`python -m tests.mutation`: how many small mistakes in the code the tests notice."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.mutation import runner
from tests.mutation.equivalent import EQUIVALENT


def main() -> None:
    """Parse the command line and run a command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    mapping = commands.add_parser(
        "map", help="run the tests once under coverage.py, and note which lines each executes"
    )
    mapping.add_argument("pytest", nargs="*", help="words for pytest behind --, such as -n 2 or single files")
    running = commands.add_parser("run", help="make mistakes, and run the tests that execute their lines")
    running.add_argument("--count", type=int, default=300, help="mistakes (300)")
    running.add_argument("--seed", type=int, default=0, help="of the random sample (0)")
    running.add_argument("--only", default="", help="beginning of the paths below harness/, such as training/")
    running.add_argument(
        "--listed", nargs="*", metavar="ID", help="the listed mistakes in place of a sample: all, or these"
    )
    running.add_argument(
        "--of",
        type=Path,
        metavar="RESULT.jsonl",
        help="the mistakes that an earlier result names, in place of a sample",
    )
    running.add_argument("--jobs", type=int, default=1, help="copies of the tree that are tested at a time (1)")
    running.add_argument("--budget", type=float, default=120.0, help="seconds of tests for a mistake at most (120)")
    running.add_argument(
        "--slow", action="store_true", help="also run the slow tests of the module's own file of tests"
    )
    running.add_argument(
        "--out", type=Path, default=runner.ROOT / runner.CACHE / runner.RESULT, help="the result as JSON"
    )
    running.add_argument("--anew", action="store_true", help="also make the mistakes that were noticed before")
    shown = commands.add_parser("table", help="print a result as Markdown")
    shown.add_argument("result", nargs="?", type=Path, default=runner.ROOT / runner.CACHE / runner.RESULT)
    words = parser.parse_args()
    cache = runner.ROOT / runner.CACHE
    if words.command == "map":
        runner.save_map(runner.make_map(runner.ROOT, words.pytest), cache / runner.MAP)
        print(f"wrote {cache / runner.MAP}")
    elif words.command == "table":
        print(runner.table(json.loads(words.result.read_text())))
    else:
        run(words)


def run(words: argparse.Namespace) -> None:
    """Make the mistakes, write the result and print its table."""
    root, cache = runner.ROOT, runner.ROOT / runner.CACHE
    if words.listed is not None:
        changes, facts = runner.listed_changes(root, words.listed), {"listed": True}
    else:
        if not (cache / runner.MAP).is_file():
            sys.exit("there is no map of which tests execute which lines; make it first: python -m tests.mutation map")
        lines = runner.read_map(cache / runner.MAP)
        if words.of is not None:
            mutants = runner.of_result(root, words.of)
        else:
            mutants = runner.sample(root, words.count, words.seed, only=words.only)
        changes = [runner.change_of(mutant, root, lines, words.budget) for mutant in mutants]
        changes = [runner.with_new_tests(change, root, lines) for change in changes]
        sample = {"count": words.count, "seed": words.seed, "only": words.only}
        facts = {**(sample if words.of is None else {"of": str(words.of)}), "budget": words.budget}

    log = words.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    noticed = {} if words.anew else runner.noticed_before(log, changes)

    def report(outcome: runner.Outcome) -> None:
        with log.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        name = " ".join(outcome.name.split())
        print(f"{outcome.verdict:<10} {outcome.seconds:6.1f} s  {name[:100]}  {outcome.by}", flush=True)

    made = runner.Runner(root, words.jobs, EQUIVALENT, report, slow=words.slow).run(
        [each for each in changes if each.name not in noticed]
    )
    by_name = {outcome.name: outcome for outcome in made} | noticed
    outcomes = [by_name[change.name] for change in changes]
    words.out.write_text(runner.to_json(outcomes, **facts) + "\n")
    print(runner.table(json.loads(words.out.read_text())))


if __name__ == "__main__":
    main()
