"""The mutation runner makes the mistakes that it names, and tells one that was noticed from one that is not."""

import ast
import dataclasses
import json
import textwrap

import pytest

from tests.mutation import runner
from tests.mutation.listed import LISTED
from tests.mutation.operators import find_mutants, is_other_program

SOURCE = '''
"""Nothing of this sentence is changed."""
from __future__ import annotations


def grade(points: int = 3, *, scale: float = 0.5, strict=True) -> str:
    """Nor this one."""
    if points >= 10 and not strict:
        return "good"
    total = max(points, 1) * scale
    print(f"{points + 1} points", end="")
    return pow(total, points) if total else "none at all"
'''
EXPECTED = {
    "points: int = 4", "scale: float = 1.0", "strict=False", "points > 10", "points >= 11", "points >= 10 or not",
    "and strict", "if (not (points >= 10 and not strict)):", "return None", "return 'xgood'", "min(points, 1)", "max(points, 2)", "max(1, points)",
    "/ scale", "pass", 'points")', "pow(points, total)", "if (not (total)) else",
}  # fmt: skip


def test_the_mistakes_of_a_function_are_those_that_can_be_made_in_it():
    source = SOURCE.encode()
    mutants = [mutant for mutant in find_mutants("grade.py", source) if is_other_program(mutant, source)]
    changed = [mutant.apply(source).decode() for mutant in mutants]
    for text in EXPECTED:
        assert any(text in program and text not in SOURCE for program in changed), text
    assert len(set(changed)) == len(changed) == len(EXPECTED) + 1  # nothing is returned in two places
    for mutant, program in zip(mutants, changed, strict=True):
        (different,) = [
            number
            for number, lines in enumerate(zip(SOURCE.splitlines(), program.splitlines(), strict=True), 1)
            if lines[0] != lines[1]
        ]
        assert mutant.line == different and mutant.scope == "grade"
        assert "Nothing of this sentence" in program and "Nor this one" in program


def test_every_listed_change_can_still_be_made_and_its_tests_are_there():
    assert len({each.id for each in LISTED}) == len(LISTED) == 52
    for each, change in zip(LISTED, runner.listed_changes(runner.ROOT), strict=True):
        source = (runner.ROOT / change.path).read_bytes()
        for old, _ in each.edits:
            assert source.count(old.encode()) == 1, (each.id, old)
        changed = change.apply(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), each.id
        for test in each.tests:
            path, _, name = test.partition("::")
            assert f"\ndef {name}(" in (runner.ROOT / path).read_text(), (each.id, test)


def test_what_a_shared_fixture_executes_counts_for_every_test_that_uses_it():
    lines = [{"fixture tests::run": {"p/a.py": [1, 2]}, "t.py::one": {"p/a.py": [3]}}, {"t.py::two": {"p/a.py": [3]}}]
    tests = [
        {"t.py::one": {"seconds": 2.0, "fixtures": ["fixture tests::run"]}},
        {"t.py::two": {"seconds": 1.0, "fixtures": ["fixture tests::run"]}, "t.py::one": {"seconds": 0.5, "fixtures": []}},
    ]  # fmt: skip
    joined = runner.join(lines, tests, {"p/a.py": "d"})
    assert joined.lines == {"p/a.py": {number: ["t.py::one", "t.py::two"] for number in "123"}}
    assert joined.tests == {"t.py::one": 2.0, "t.py::two": 1.0}


def test_a_line_that_is_executed_when_its_file_is_imported_has_the_tests_of_the_whole_file():
    source = b"LIMIT = 3\n\n\ndef first(count=LIMIT):\n    return count > 2\n"
    lines = runner.LineMap(
        {"p/a.py": {"1": ["x.py::other"], "4": ["x.py::other"], "5": ["tests/test_a.py::own"]}}, {}, {}
    )
    by_line = {mutant.line: lines.tests_of(mutant, source, 9.0, "p")[0] for mutant in find_mutants("a.py", source)}
    assert by_line == {1: ["tests/test_a.py::own", "x.py::other"], 5: ["tests/test_a.py::own"]}


def test_the_mistakes_of_a_result_are_made_again_although_lines_were_added_and_a_sample_would_be_another(tmp_path):
    source = "def grows(a, b):\n    first = a * b\n    return first + b\n\n\ndef other(a):\n    return a > 1\n"
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/sums.py").write_text(source)
    (tmp_path / "harness/more.py").write_text("def limit():\n    return 5\n")
    made = runner.sample(tmp_path, 9, 0)
    assert {mutant.path for mutant in made} == {"sums.py", "more.py"}
    log = tmp_path / "result.jsonl"
    outcomes = [runner.Outcome(mutant.key, f"harness/{mutant.path}", "survived", "", 1.0, 1, True, dataclasses.asdict(mutant)) for mutant in made]  # fmt: skip
    log.write_text("".join(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes))
    assert runner.of_result(tmp_path, log) == made
    (tmp_path / "harness/sums.py").write_text(f"import math\n\nPI = math.pi\n\n\n{source}")
    (tmp_path / "harness/more.py").unlink()
    again = runner.of_result(tmp_path, log)
    assert [(mutant.key, mutant.line - 5) for mutant in again] == [
        (mutant.key, mutant.line) for mutant in made if mutant.path == "sums.py"
    ]


@pytest.fixture
def tree(tmp_path):
    """A package of one module with its tests, one of which needs a file that is only there without a mistake."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/sums.py").write_text("def add(a, b):\n    return a + b\n\n\ndef unused(a):\n    return a\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_sums.py").write_text(
        textwrap.dedent("""
            import pytest
            from package.sums import add

            @pytest.mark.parametrize("words", ["one - and two"])
            def test_three(words):
                assert add(1, 2) == 3

            def test_nothing():
                add(0, 0)

            def test_that_always_fails():
                assert False
        """)
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.slow
def test_a_mistake_is_noticed_survives_or_has_no_tests_and_a_failing_test_notices_nothing(tree):
    source = (tree / "package/sums.py").read_bytes()
    plus = source.index(b"+")
    edits, file = ((plus, plus + 1, b"-"),), "tests/test_sums.py::"
    chosen = {
        "noticed": ("test_nothing", "test_three"), "survived": ("test_nothing",), "untested": (),
        "unreliable": ("test_that_always_fails",), "equivalent": ("test_three",),
    }  # fmt: skip
    changes = [
        runner.Change(name, "package/sums.py", edits, tuple(file + test for test in tests))
        for name, tests in chosen.items()
    ]
    reported = []
    outcomes = runner.Runner(tree, 2, {"equivalent": "a test's own"}, reported.append, libraries=()).run(changes)
    assert [outcome.verdict for outcome in outcomes] == [outcome.name for outcome in outcomes] == list(chosen)
    assert outcomes[0].by.startswith(f"{file}test_three[one") and outcomes[4].by == "a test's own"
    assert sorted(map(str, reported)) == sorted(map(str, outcomes))
    assert (tree / "package/sums.py").read_bytes() == source
    document = json.loads(runner.to_json(outcomes, seed=0))
    assert document["total"]["noticed of those that count"] == pytest.approx(1 / 3, abs=1e-3)
    assert "| package | 1 | 2 | 1 | 33 % |" in runner.table(document)


def test_a_stopped_run_goes_on_and_asks_the_tests_that_are_new_about_what_was_not_noticed(tree, tmp_path):
    change = runner.Change("a", "package/sums.py", ((0, 0, b""),), ("tests/test_sums.py::test_nothing",), seconds=1.0)
    lines = runner.LineMap({}, {"tests/test_sums.py::test_nothing": 1.0, "tests/test_sums.py::test_three": 1.0}, {})
    asked = runner.with_new_tests(change, tree, lines)
    assert (
        asked.tests == ("tests/test_sums.py::test_that_always_fails", *change.tests) and asked.seconds > change.seconds
    )
    assert runner.with_new_tests(asked, tmp_path / "elsewhere", lines) == asked
    log = tmp_path / "result.jsonl"
    assert runner.noticed_before(log, [change]) == {}
    for name, verdict in (("a", "survived"), ("b", "noticed"), ("c", "noticed"), ("a", "noticed"), ("d", "unreliable"), ("e", "noticed")):  # fmt: skip
        by = runner.TIME_LIMIT if name == "e" else ""
        outcome = runner.Outcome(name, "package/sums.py", verdict, by, 1.0, 1, True, {})
        with log.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        changes = [dataclasses.replace(change, name=each) for each in ("a", "b", "d", "e")]
        known = runner.noticed_before(log, changes)
    assert sorted(known) == ["a", "b"] and known["a"].verdict == "noticed"


@pytest.mark.slow
def test_the_map_has_the_lines_of_a_test_and_those_that_its_fixture_executes_in_a_forked_process():
    pytest.importorskip("coverage")
    lines = runner.make_map(
        runner.ROOT,
        [
            "-n",
            "0",
            "tests/evaluation/test_trained_model.py",
            "-k",
            "decides_is_refused or refused_by_key or did_not_write",
        ],
    )
    file = "tests/evaluation/test_trained_model.py::"
    by_line = lines.lines["harness/runs/trainer.py"]
    source = (runner.ROOT / "harness/runs/trainer.py").read_text().splitlines()
    trained = str(next(n for n, text in enumerate(source, 1) if "self._keep_weights(model, summary)" in text))
    users = [
        "test_a_setting_that_the_checkpoint_decides_is_refused",
        "test_weights_for_another_model_are_refused_by_key",
    ]
    assert by_line[trained] == [file + name for name in users]  # by `harness run`, which the fixture has started
    assert lines.tests.keys() == {file + "test_a_checkpoint_that_harness_did_not_write_is_refused", *(file + name for name in users)}  # fmt: skip
    (mutant,) = (each for each in find_mutants("runs/trainer.py", "\n".join(source).encode()) if each.line == int(trained) and each.operator == "removed statement")  # fmt: skip
    assert lines.tests_of(mutant, "\n".join(source).encode(), 999.0, "harness") == ([file + name for name in sorted(users, key=lambda name: lines.tests[file + name])], True)  # fmt: skip
