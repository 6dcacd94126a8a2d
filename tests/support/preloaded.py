"""What the processes of `tests.support.forked` share: imported, and drawn once, before they are forked."""

import gc

import matplotlib.backends.backend_agg
import matplotlib.font_manager  # noqa: F401
import PIL.Image  # noqa: F401
import sklearn.datasets  # noqa: F401
import wandb  # noqa: F401

import harness.cli.main
import harness.runs.inference
import harness.runs.lr_find
import harness.runs.run  # noqa: F401
from harness.data.registry import enlarged_digits
from harness.reporting.figures import style
from harness.reporting.html import pages
from harness.tracking.wandb import init

init.preload()
style.warm_up()
enlarged_digits()
pages.precompile()
gc.collect()
gc.freeze()  # the collector of a forked process does not touch, and so does not copy, what it shares with the server
