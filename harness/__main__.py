"""The program `harness`, also as `python -m harness`, which torchrun and a sweep's agent start.

A signal in the second that the imports of the command line take ends the process at once with its status: nothing has
begun that could be saved.
"""

import os
import signal

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # as in `harness.utils.signals`, without its imports


def main() -> None:
    """Run the command line."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    from harness.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
