"""The bar that a terminal shows between the lines of the epochs."""

import io
import re

import pytest

from harness.runs import progress
from harness.runs.progress import BarReporter
from harness.training.loop import StepInfo


def step(number, losses, batches=4, epochs=2, share_name="acc"):
    """The position after so many updates of 128 images each; the loss that is read is appended to `losses`."""

    def loss():
        losses.append(number)
        return 2.5 / number

    epoch, batch = divmod(number - 1, batches)
    return StepInfo(
        number, epoch, epochs, batch + 1, batches, 128 * (batch + 1), 0.01 * number, loss, lambda: 0.25, share_name
    )


def drawn(stream):
    """Return the states of the bar, in the order in which they were drawn."""
    return [part.strip() for part in re.split(r"[\r\n]|\x1b\[A", stream.getvalue()) if part.strip()]


def shown(text):
    """Return the lines that a terminal shows after a text with carriage returns and moves of the cursor upwards."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\r|\n|\x1b\[A)", text):
        match part:
            case "\r":
                column = 0
            case "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            case "\x1b[A":
                row -= 1
            case _:
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
    return [line.strip() for line in lines if line.strip()]


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the bar reads."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_bar_has_epoch_step_loss_accuracy_rate_and_the_throughput_since_it_was_drawn(clock):
    stream, losses = io.StringIO(), []
    bar = BarReporter(stream)
    for number in (1, 2, 3):
        bar.on_step(step(number, losses))
        clock[0] += 0.25
    first, *_, last = (line for line in drawn(stream) if "loss" in line)
    assert first.startswith("epoch 1/2 step 1/4") and "images/s" not in first
    assert "loss 2.500, acc 25.0 %, lr 1.00e-02" in first
    assert last.startswith("epoch 1/2 step 3/4") and "loss 0.833, acc 25.0 %, lr 3.00e-02" in last
    assert "512 images/s" in last  # 128 images in a quarter of a second
    assert " 38 %" in last  # 3 of 8 updates


def test_the_loss_is_read_only_when_the_bar_is_redrawn_which_it_is_at_the_end_of_each_epoch(clock):
    stream, losses = io.StringIO(), []
    bar = BarReporter(stream)
    for number in range(1, 9):
        bar.on_step(step(number, losses))
        clock[0] += progress.REDRAW_SECONDS / 2.5
    assert losses == [1, 4, 7, 8]


def test_the_throughput_of_a_new_epoch_counts_its_own_images(clock):
    stream, losses = io.StringIO(), []
    bar = BarReporter(stream)
    for number in (4, 5):
        bar.on_step(step(number, losses))
        clock[0] += 0.5
    assert "epoch 2/2 step 1/4" in drawn(stream)[-1] and "256 images/s" in drawn(stream)[-1]


@pytest.mark.parametrize("share_name, text", [("exact_match", "exact 25.0 %"), ("auc", "AUC 25.0 %")])
def test_the_share_is_named_after_what_it_is(clock, share_name, text):
    stream = io.StringIO()
    BarReporter(stream).on_step(step(1, [], share_name=share_name))
    assert text in drawn(stream)[-1]


def test_a_line_stands_above_the_bar_and_the_closed_bar_leaves_nothing(clock):
    stream = io.StringIO()
    bar = BarReporter(stream)
    bar.message("before")
    bar.on_step(step(1, []))
    bar.message("between")
    bar.close()
    bar.message("after")
    assert shown(stream.getvalue()) == ["before", "between", "after"]
