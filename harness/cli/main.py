"""The `harness` program: its commands (each in `commands/`), its manners when one fails, its exit statuses."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Any

import click

from harness.cli import check, completion, evaluate, report, sweep, train
from harness.cli.options import CONTEXT, CommandGroup
from harness.config.recipe import recipe_paths
from harness.utils.environment import rank, world_size
from harness.utils.errors import AlreadyFinished, HarnessError, PeerLostError, ResourceError, UsageError, did_you_mean
from harness.utils.signals import Interrupted

EPILOG = """\b
Exit status: 0 done; 2 wrong command or value; 3 data missing or unreadable; 4 checkpoint missing, damaged,
foreign or unsafe; 5 training diverged; 6 out of disk, memory or files; 7 tracking failed where it was required;
8 run folder in use; 9 verify found a deviation, or doctor that no run is possible; 130 after Ctrl-C, 143 after
SIGTERM, 138 after SIGUSR1, each with the state saved; 1 anything else."""


# A new command goes into the section that a user would look for it in.
SECTIONS = {
    "Train": (train.run, train.lr_find, train.plot),
    "Look": (evaluate.evaluate, evaluate.explain, evaluate.models_),
    "Many runs": (sweep.sweep, sweep.runs),
    "Share": (report.report, evaluate.export, sweep.sync),
    "Check": (check.verify, check.doctor, check.completion),
}


@click.group(cls=CommandGroup, sections=SECTIONS, context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(package_name="vision-harness", message="harness %(version)s")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train an image classifier, see why it works, search its learning rates, share the result.

    \b
    harness run --recipe digits        no download, no account, a minute on two CPU cores
    harness run                        the custom ResNet on CIFAR-10
    harness evaluate runs/NAME         per-class table, galleries, Grad-CAM
    harness lr-find --recipe digits       a range test: which learning rates to train with
    harness sweep sweeps/digits.yaml   a search on this machine, without a W&B server
    harness plot --schedule cyclic     draw a learning-rate schedule
    harness report runs/NAME           one HTML page that explains a run, several, or a sweep
    harness doctor                     what this machine has, and what a run would use
    """
    if world_size() > 1 and context.invoked_subcommand != "run":
        raise UsageError(f"harness {context.invoked_subcommand} is for one process; start it without torchrun")


def main() -> None:
    """The `harness` program: every mistake of a user ends in one line and the right exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"] or ["--help"]
    before = _exit_on_signals()
    if completion.VARIABLE in os.environ:
        completion.prepare()
    try:
        status = cli.main(arguments, prog_name="harness", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.NoSuchOption as error:
        _complain(f"no such option {error.option_name}{_nearest_option(error)}", debug, rank() == 0)
        status = 2
    except click.ClickException as error:
        _complain(_told(error), debug, rank() == 0)
        status = 2
    except HarnessError as error:
        tells = not _is_told_by_the_leader(error)
        if not isinstance(error, AlreadyFinished | Interrupted):
            _complain(str(error), debug, tells)
        elif tells:  # news, not a mistake
            click.echo(str(error), err=True)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception:  # noqa: BLE001 - the last door: our own mistakes, shown whole
        traceback.print_exc()
        click.echo("error: this is a mistake in harness, not in your command", err=True)
        status = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(status if isinstance(status, int) else 0)


def _exit_on_signals() -> dict[int, Any]:
    """End by exiting, never by dying of a signal, which W&B's agent would count as success; the handlers before."""
    numbers = [
        number for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
    ]
    return {number: signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in numbers}


def _is_told_by_the_leader(error: HarnessError) -> bool:
    """Whether, of several processes, this one may be silent: what all of them find, the first one says."""
    if isinstance(error, PeerLostError):
        return error.told
    return rank() > 0 and not isinstance(error, ResourceError)


def _told(error: click.ClickException) -> str:
    """click's message in our manner: no capital, and where to read on."""
    text, context = error.format_message(), getattr(error, "ctx", None)
    text = text[:1].lower() + text[1:].rstrip(".")
    if "unexpected extra argument" in text:
        word = text.partition("(")[2].rstrip(")")
        if word in recipe_paths():
            return f"{text}; a recipe is given by --recipe {word}"
    if context is not None:
        text += f"; see {context.command_path} --help"
    return text


def _nearest_option(error: click.NoSuchOption) -> str:
    known = [
        name
        for parameter in (error.ctx.command.params if error.ctx else [])
        for name in parameter.opts
        if name.startswith("--")
    ]
    return did_you_mean(error.option_name.lower().replace("_", "-"), known)


def _complain(text: str, debug: bool, here: bool = True) -> None:
    """The one line of a mistake; of several processes, the first tells what all of them find (`here`: this one tells)."""
    if not here:
        return
    if debug:
        traceback.print_exc()
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    click.echo(f"error: {f'rank {rank()}: ' if rank() else ''}{clean}", err=True)
