"""A resumed run's journal agrees with its checkpoint, and whatever was lost is said."""

import math

import pytest

from harness.tracking.journal import REPLACED, Journal, read_journal
from harness.tracking.journal_lines import are_unchanged, encode_line
from harness.tracking.journal_repair import repair_journal
from harness.tracking.records import Record
from harness.tracking.serialization import from_line, to_line
from harness.utils.errors import CheckpointError
from tests.support.records import epoch, final, same

HEADER = {"config": {"seed": 1}, "environment": {"python": "3"}}
FIND = Record(0, 0, {"find/lr_max": 0.5}, kind="find")
EPOCHS = [epoch(number) for number in (1, 2, 3)]
HISTORY = [{**record.scalars()} for record in EPOCHS]


def write(folder, *records, steps=9):
    journal = Journal(folder, HEADER)
    for record in (FIND, *EPOCHS, *records):
        journal.record(record)
    journal.alert("out of memory", "once")
    journal.finish("stopped", 143)
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def repair(folder, history=HISTORY, step=9):
    return repair_journal(folder, step, HEADER, history, step)


def damage(lines, index, how):
    """Return the lines with one of them damaged."""
    line = lines[index]
    match how:
        case "gone":
            changed = []
        case "doubled":
            changed = [line, line]
        case "cut":
            changed = [line[: len(line) // 2] + b"\n"]
        case "joined":
            changed = [line[:-1]]
        case "zeros":
            changed = [bytes(len(line) - 1) + b"\n"]
        case "a digit":
            position = max(place for place, byte in enumerate(line[:-20]) if byte in b"0123456789")
            digit = b"0123456789"[(line[position] - 47) % 10]
            changed = [line[:position] + bytes([digit]) + line[position + 1 :]]
        case "other type":
            changed = [b'["a list"]\n', b"{}\n"]
        case "moved":
            return [*lines[:index], *lines[index + 1 :], line]
    return [*lines[:index], *changed, *lines[index + 1 :]]


HOW = ["gone", "doubled", "cut", "joined", "zeros", "a digit", "other type", "moved"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("index", range(5))
def test_after_any_damage_each_epoch_of_the_checkpoint_has_one_record_with_its_metrics_and_a_loss_is_reported(
    tmp_path, index, how
):
    """The lines: 0 header, 1 range test, 2 to 4 epochs, then the alert and the end."""
    lines = write(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(damage(lines, index, how)))
    result = repair(tmp_path)
    Journal.resume(tmp_path, 9, HEADER).finish("finished", 0)
    contents = read_journal(tmp_path)
    assert contents.whole and contents.header == HEADER
    records = [record for record in contents.records if record.kind == "epoch"]
    assert [(record.step, record.epoch) for record in records] == [(3, 1), (6, 2), (9, 3)]
    assert [record.scalars() for record in records] == HISTORY
    lost = [record.epoch for record in records if record.steps is None]
    assert lost == result.restored
    assert set(lost) <= {index - 1} | ({index} if how == "joined" else set())
    has_find = any(record.kind == "find" for record in contents.records)
    if lost or not has_find or how in ("cut", "zeros", "a digit", "other type", "joined"):
        # A range test whose line is gone leaves no trace in the checkpoint.
        assert result or (index, how) == (1, "gone")
        assert not result or "journal.jsonl did not agree with the checkpoint" in str(result)
    if how == "doubled" and index > 1:
        assert result.removed == [index - 1] and not lost


def test_a_whole_journal_is_not_touched_and_nothing_is_reported(tmp_path):
    content = b"".join(write(tmp_path, epoch(4), final(12)))
    assert not repair(tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == content
    assert not (tmp_path / REPLACED).exists()


def test_what_is_taken_out_of_a_journal_is_kept_beside_it(tmp_path):
    lines = write(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(damage(lines, 2, "cut")))
    assert str(repair(tmp_path)) == (
        "journal.jsonl did not agree with the checkpoint: 1 line is damaged; the metrics of epoch 1 are restored from the"
        " checkpoint, without their curves per step and images"
    )
    assert lines[2][: len(lines[2]) // 2] in (tmp_path / REPLACED).read_bytes()


def test_a_journal_that_cannot_be_read_is_not_replaced(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(
        CheckpointError, match=r"cannot read .*journal\.jsonl: Is a directory; start again with --resume"
    ):
        repair(tmp_path)
    assert (tmp_path / "journal.jsonl").is_dir()


def test_a_journal_that_is_gone_is_made_again_from_the_checkpoint(tmp_path):
    result = repair(tmp_path)
    assert result.has_new_header and result.restored == [1, 2, 3]
    assert [record.scalars() for record in read_journal(tmp_path).records] == HISTORY


def test_a_record_that_the_checkpoint_does_not_know_is_removed_though_its_step_is_not_later(tmp_path):
    """Killed between the record of an epoch that was resumed in its evaluation, and its checkpoint."""
    write(tmp_path)
    assert not repair(tmp_path, HISTORY[:2])
    Journal.resume(tmp_path, 9, HEADER).finish("finished", 0)
    assert [record.epoch for record in read_journal(tmp_path).records] == [0, 1, 2]


def test_other_metrics_than_those_of_the_checkpoint_are_replaced(tmp_path):
    write(tmp_path)
    history = [HISTORY[0], {**HISTORY[1], "val/acc": 0.25}, {**HISTORY[2], "val/loss": math.nan}]
    result = repair(tmp_path, history)
    assert (result.restored, result.removed) == ([2, 3], [2, 3])
    assert str(result).endswith("; records of epochs 2, 3 that do not agree with the checkpoint are removed")
    assert [record.values["val/acc"] for record in read_journal(tmp_path).records[1:]] == [0.1, 0.25, 0.3]


def test_a_journal_of_version_0_1_without_checksums_is_read_and_continued(tmp_path):
    lines = [from_line(line) for line in write(tmp_path)]
    plain = [{key: value for key, value in line.items() if key != "crc32"} for line in lines]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(map(to_line, plain)))
    assert not repair(tmp_path)
    journal = Journal.resume(tmp_path, 9, HEADER)
    journal.record(epoch(4))
    journal.finish("finished", 0)
    contents = read_journal(tmp_path)
    assert contents.whole and same(contents.records, [FIND, *EPOCHS, epoch(4)])


def test_any_flipped_bit_of_a_line_is_noticed():
    lines = [encode_line({"kind": "epoch", "values": {"acc": value}}).rstrip(b"\n") for value in (0.5, 0.25)]
    assert are_unchanged(lines) == [True, True]
    assert from_line(lines[0])["values"] == {"acc": 0.5}
    for bit in range(8 * len(lines[1])):
        changed = bytearray(lines[1])
        changed[bit // 8] ^= 1 << bit % 8
        assert are_unchanged([lines[0], bytes(changed)]) == [True, False], bytes(changed)
