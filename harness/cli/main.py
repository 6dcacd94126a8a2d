"""The `harness` program: its commands (each in a module beside this one), how errors are shown, exit statuses."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Container
from types import FrameType
from typing import Any

import click

from harness.cli import check, completion, data, evaluate, report, runs, sweep, train
from harness.cli.commands import CONTEXT, CommandGroup, nearest_option
from harness.cli.terminal import OutputClosedError, echo, prepare_logging
from harness.config.names import data_name
from harness.config.recipe import recipe_paths
from harness.config.settings import normalize_name
from harness.utils.environment import rank, world_size
from harness.utils.errors import (
    AlreadyFinished,
    HarnessError,
    PeerLostError,
    ResourceError,
    UsageError,
    as_harness_error,
)
from harness.utils.signals import SIGNALS, Interrupted
from harness.utils.text import printable

EXIT_STATUSES = {
    0: "success",
    1: "an unexpected failure",
    2: "a wrong command or value",
    3: "data missing or unreadable",
    4: "a checkpoint missing, damaged, foreign or unsafe",
    5: "training diverged",
    6: "out of disk, memory or file handles",
    7: "tracking failed where it was required",
    8: "the run directory is in use",
    9: "a check failed: verify found a deviation, or doctor that no run is possible",
    130: "stopped by Ctrl-C, the state saved",
    143: "stopped by SIGTERM, the state saved",
    138: "stopped by SIGUSR1, the state saved",
}
EPILOG = "\b\n" + textwrap.fill(
    f"Exit statuses: {'; '.join(f'{status} {meaning}' for status, meaning in EXIT_STATUSES.items())}.", 78
)

# A new command goes into the section that a user would look for it in.
SECTIONS = {
    "Train": (data.data, train.run, train.lr_find, train.plot),
    "Use a trained model": (evaluate.evaluate, evaluate.predict, evaluate.explain, evaluate.export),
    "Many runs": (sweep.sweep, runs.runs, evaluate.models),
    "Share": (report.report, sweep.sync),
    "Check": (check.verify, check.doctor, check.completion),
}


@click.group(cls=CommandGroup, sections=SECTIONS, context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(package_name="vision-harness", message="%(package)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train an image classifier, explain what it does, search its learning rates, share the result.

    \b
    harness run --recipe digits        no download, no account, a minute on two CPU cores
    harness run                        the custom ResNet on CIFAR-10
    harness data pictures              what a folder of your own holds, before you train on it
    harness evaluate runs/NAME         per-class table, galleries, Grad-CAM
    harness predict runs/NAME photos   class probabilities of your own images, as CSV
    harness lr-find --recipe digits    a range test: which learning rates to train with
    harness sweep sweeps/digits.yaml   a W&B sweep on this machine, without a server
    harness plot --schedule cyclic     draw a learning-rate schedule
    harness report runs/NAME           one HTML page that explains a run, several, or a sweep
    harness doctor                     what this machine has, and what a run would use
    """
    if world_size() > 1 and context.invoked_subcommand != "run":
        raise UsageError(f"harness {context.invoked_subcommand} runs in one process; start it without torchrun")


def main() -> None:
    """Run the command line: a user's mistake ends in one line and the right exit status."""
    # Importing the libraries creates a million objects, none of them garbage. By default they are examined so often that
    # the imports take a fifth longer.
    gc.set_threshold(200_000, 10, 10)
    prepare_logging()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    handlers = _exit_on_signals()
    if completion.VARIABLE in os.environ:
        completion.prepare()
    try:
        status = cli.main(arguments, prog_name="harness", standalone_mode=False)
    except click.NoSuchOption as error:
        if rank() == 0:
            typed = {normalize_name(name): name for name in (argument.partition("=")[0] for argument in arguments)}
            name = typed.get(normalize_name(error.option_name), error.option_name)
            _show_error(f"no such option {name}{nearest_option(error)}", debug)
        status = 2
    except click.ClickException as error:
        if rank() == 0:
            _show_error(_message(error), debug)
        status = 2
    except HarnessError as error:
        if not _is_reported_elsewhere(error):
            if isinstance(error, AlreadyFinished | Interrupted):  # news, not a mistake
                echo(str(error), err=True)
            else:
                _show_error(str(error), debug)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except OutputClosedError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:  # noqa: BLE001 - the system's and the libraries' errors; the rest is a bug, shown whole
        known = as_harness_error(error)
        if known is not None:
            if not _is_reported_elsewhere(known):
                _show_error(str(known), debug)
            status = known.exit_code
        else:
            echo(traceback.format_exc().rstrip(), err=True)
            echo("error: this is a bug in harness, not in your command", err=True)
            status = 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    gc.freeze()  # else the interpreter's last collection examines every object of the libraries, for about a second
    sys.exit(status if isinstance(status, int) else 0)


def _exit_on_signals() -> dict[int, Any]:
    """End by exiting, never by dying of a signal, which W&B's agent would count as success; return the former handlers.

    An exception inside an import may be swallowed or turned into another one by what is imported: there the process ends
    at once. A signal that is ignored, such as SIGHUP under nohup, stays so.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            os._exit(128 + number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    numbers = [number for name in SIGNALS if (number := getattr(signal, name, None)) is not None]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in numbers}


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_reported_elsewhere(error: HarnessError) -> bool:
    """Return whether an error has been or is reported elsewhere: what all processes meet, the main one reports."""
    if error.is_reported or isinstance(error, PeerLostError):
        return error.is_reported
    return rank() > 0 and not isinstance(error, ResourceError)


def _message(error: click.ClickException) -> str:
    """Return click's message in the form of ours: no capital, no full stop, and where to read on."""
    text, context = error.format_message(), getattr(error, "ctx", None)
    text = text[:1].lower() + text[1:].rstrip(".")
    if "unexpected extra argument" in text:
        argument = text.partition("(")[2].rstrip(")")
        if argument in recipe_paths():
            return f"{text}; a recipe is given by --recipe {argument}"
        options = {option for each in context.command.params for option in each.opts} if context else set()
        if meant := _option_of_path(argument, options):
            return f"{text}; did you mean {meant} {shlex.quote(argument)}?"
    if context is not None:
        text += f"; see {context.command_path} --help"
    return text


def _option_of_path(path: str, options: Container[str]) -> str:
    """Return the option that an existing file or folder may have been meant for; empty where there is none."""
    if not os.path.exists(path):
        return ""
    is_recipe = os.path.isfile(path) and path.lower().endswith((".yaml", ".yml"))
    is_run = os.path.isfile(os.path.join(path, "config.yaml"))
    is_data = os.path.isdir(path) or data_name("folder", path) != os.path.basename(path)  # an archive or a table
    option = "--recipe" if is_recipe else "--resume" if is_run else "--data-dir" if is_data else ""
    return option if option in options else ""


def _show_error(text: str, debug: bool) -> None:
    """Write an error to stderr as one line, under `--debug` after its traceback."""
    if debug:
        echo(traceback.format_exc().rstrip(), err=True)
    echo(f"error: {f'rank {rank()}: ' if rank() else ''}{printable(text)}", err=True)
