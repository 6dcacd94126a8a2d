"""Mistakes that change nothing that a test could see, with the reason: they are not counted.

A mistake is named by `Mutant.key`; when its text or its function changes it has to be judged again.
"""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "sweep/storage.py::is_dead: returned nothing: False -> None": "its callers ask only whether it is true",
    "checks/augmentation.py::: constant: 4 -> 5": "LOW is written into the pixels and read out of them by one constant",
    "evaluation/predict.py::tta_views: removed argument: , strict=True -> ": "both have one length by construction",
    "tracking/wandb/session.py::: constant: \"harness-sent.json\" -> 'xharness-sent.json'": "the name of a file that only one module writes and reads",
    "tracking/serialization.py::_decode: function: any -> all": "all images of a tuple have masks, or none has",
    'data/stored_table.py::_json_columns: removed argument: , newline="\\n" -> ': "it is the default of io.StringIO",
    "checks/doctor.py::_torch_and_torchvision: constant: 0.0 -> 1.0": "any box will do: the question is whether the operation runs",
    "sweep/study.py::Study.report: returned nothing: False -> None": "its caller asks only whether it is true",
    "reporting/figures/training_curves.py::draw_learning_rate: and, or:  and  ->  or ": "there is a lower panel where there is a momentum",
    'tracking/wandb/upload.py::upload: removed argument: prefix=".sync-",  -> ': "the name of a temporary folder",
    "tracking/wandb/variables.py::: constant: \"WANDB_TAGS\" -> 'xWANDB_TAGS'": "a run is given its tags, which W&B's client prefers to the variable",
    "data/duplicates.py::_comparable: and, or:  or  ->  and ": "a split without sizes has no files either, for which the same line asks",
    "training/schedule.py::Schedule: constant: 0.9 -> 1.8": "whoever makes a schedule gives the momentum",
    "cli/main.py::main: removed statement: gc.set_threshold(200_000, 10, 10) -> pass": "a fifth of the time of the imports, and nothing else",
}
