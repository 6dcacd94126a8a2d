"""The steps of an epoch are written once, in one or several lines of a journal, and read as one curve."""

import json
import math
from dataclasses import replace

import pytest

from harness.tracking.journal import NAME, REPLACED, Journal, read_journal
from harness.tracking.journal_lines import encode_line
from harness.tracking.journal_repair import repair_journal
from harness.tracking.records import Record
from harness.tracking.serialization import encode_record
from tests.support.records import epoch, same

TIMES = [1e9 + second for second in range(1, 13)]


def timed(number, steps=4):
    """Return the record of an epoch with the time of each step."""
    record = epoch(number, steps)
    return replace(record, time=2e9, step_times=[TIMES[step - 1] for step in record.steps.x])


def part(record, first, last):
    """Return the record of some steps of an epoch, while it is trained."""
    steps = record.with_steps(lambda step: first <= step <= last)
    return replace(steps, step=last, epoch=record.epoch - 1, values={}, kind="steps", time=1.5e9)


def steps_of(path):
    """Return the steps of each line of a journal."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["steps"]["x"] for line in lines if "steps" in line]


def write(folder, *records):
    """Write the journal of a run that is killed then."""
    journal = Journal(folder, {"config": {}})
    for record in records:
        journal.record(record)
    journal._file.close()


def test_the_steps_of_an_epoch_are_on_the_disk_once_and_read_as_one_curve(tmp_path):
    first, second = timed(1), timed(2)
    write(tmp_path, part(first, 1, 2), part(first, 1, 3), first, second)
    assert steps_of(tmp_path / NAME) == [[1, 2], [3], [4], [5, 6, 7, 8]]
    assert same(read_journal(tmp_path).records, [first, second])


def test_the_steps_of_an_unfinished_epoch_are_records_of_their_own(tmp_path):
    first, second = timed(1), timed(2)
    write(tmp_path, first, part(second, 5, 6))
    assert same(read_journal(tmp_path).records, [first, part(second, 5, 6)])


def test_steps_that_are_in_two_lines_count_once_as_they_were_written_first(tmp_path):
    """As after a kill between a line and the next one, where a later version writes other steps again."""
    first = timed(1)
    other = replace(first, steps=replace(first.steps, lines={name: [9.0] * 4 for name in first.steps.lines}))
    lines = [encode_line(encode_record(record, tmp_path)) for record in (part(first, 1, 3), part(other, 2, 4), first)]
    (tmp_path / NAME).write_bytes(encode_line({"kind": "header"}) + b"".join(lines))
    (record,) = read_journal(tmp_path).records
    assert list(record.steps.x) == [1, 2, 3, 4] and list(record.step_times) == TIMES[:4]
    losses = list(first.steps.lines["train/step_loss"])
    assert list(record.steps.lines["train/step_loss"]) == [*losses[:3], 9.0]


@pytest.mark.parametrize("step", [4, 6, 7, 8])
def test_a_resumed_journal_has_every_step_once_whatever_was_written_before(tmp_path, step):
    """The run was killed after step 7 of 12; it is resumed from the end of an epoch or from within one."""
    first, second, third = timed(1), timed(2), timed(3)
    write(tmp_path, part(first, 1, 3), first, part(second, 5, 6), part(second, 7, 7))
    if step == 8:  # a later checkpoint than the journal: it was not synced to the disk
        step = 7
        (tmp_path / NAME).write_bytes(b"".join((tmp_path / NAME).read_bytes().splitlines(True)[:-1]))
    history = [first.scalars()]
    assert not repair_journal(tmp_path, step, {}, history, 4)
    journal = Journal.resume(tmp_path, step)
    for record in (part(second, 5, step), part(second, 5, 7), second, part(third, 9, 10), third):
        journal.record(record)
    journal.finish("finished", 0)
    assert sorted(number for x in steps_of(tmp_path / NAME) for number in x) == list(range(1, 13))
    assert same(read_journal(tmp_path).records, [first, second, third])
    replaced = tmp_path / REPLACED
    assert not replaced.exists() or all(x[-1] > step for x in steps_of(replaced))


def test_a_lost_record_of_an_epoch_is_restored_with_the_steps_that_were_written_before_it(tmp_path):
    first, second = timed(1), timed(2)
    write(tmp_path, part(first, 1, 3), first, second)
    lines = (tmp_path / NAME).read_bytes().splitlines(True)
    lines[2] = lines[2].replace(b"val/acc", b"val/abc")
    (tmp_path / NAME).write_bytes(b"".join(lines))
    repair = repair_journal(tmp_path, 8, {}, [first.scalars(), second.scalars()], 8)
    assert (repair.damaged, repair.restored) == (1, [1])
    restored, other = read_journal(tmp_path).records
    assert (list(restored.steps.x), restored.scalars()) == ([1, 2, 3], first.scalars())
    assert same(other, second)


def test_the_steps_of_an_epoch_that_the_checkpoint_does_not_know_are_removed_with_it(tmp_path):
    first, other = timed(1), replace(timed(1), values={"train/loss": 9.0, "val/acc": 0.9})
    write(tmp_path, part(other, 1, 3), other, timed(2))
    repair_journal(tmp_path, 8, {}, [first.scalars(), timed(2).scalars()], 8)
    restored, _ = read_journal(tmp_path).records
    assert restored.steps is None


def test_steps_without_a_curve_are_damage(tmp_path):
    write(tmp_path, timed(1))
    with open(tmp_path / NAME, "ab") as file:
        file.write(encode_line({"kind": "steps", "step": 5, "epoch": 1, "values": {}}))
    assert read_journal(tmp_path).records == [timed(1)]


@pytest.mark.parametrize(
    "times", [{"time": math.nan}, {"time": "now"}, {"step_times": [math.inf] * 4}, {"step_times": 3}]
)
def test_times_that_are_no_finite_numbers_are_damage(tmp_path, times):
    write(tmp_path, timed(1))
    line = {
        "kind": "epoch",
        "step": 8,
        "epoch": 2,
        "values": {},
        "steps": encode_record(epoch(2, 4), tmp_path)["steps"],
    }
    with open(tmp_path / NAME, "ab") as file:
        file.write(encode_line({**line, **times}))
    assert read_journal(tmp_path).records == [timed(1)] and not read_journal(tmp_path).whole


def test_a_record_with_other_times_than_steps_is_refused():
    with pytest.raises(ValueError, match="the times of 1 steps"):
        Record(4, 1, {}, epoch(1).steps, step_times=[1.0])
