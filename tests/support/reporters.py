"""What a run reports, kept for tests."""

from harness.runs.progress import ProgressReporter


class Lines(ProgressReporter):
    """Keeps the lines that a run shows."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)
