"""The program `harness`, also as `python -m harness`, which torchrun and a sweep's agent start.

A signal in the second that the imports of the command line take ends the process at once with its status: nothing has
begun that could be saved.
"""

import os
import signal
import sys

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # as in `harness.utils.signals`, without its imports


def main() -> None:
    """Run the command line."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    # Under `python -m` the current directory is first on the path, so that a file there hides a library of the same name.
    # It may be the folder of a run from somewhere else; a plug-in in it is imported when `--plugin` names it. A directory
    # that this package is imported from stays.
    here = os.getcwd()
    if sys.path and sys.path[0] in ("", here) and here != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]
    from harness.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
