"""`python -m harness`: what torchrun and a sweep's agent start."""

import os
import sys

# Python puts the current directory first on its path, so that a file there hides a library of the same name. It may be
# the folder of a run from somewhere else; a plug-in in it is imported when `--plugin` names it. A directory that this
# package is imported from stays.
if sys.path and sys.path[0] in ("", os.getcwd()) and os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

from harness.cli.main import main

if __name__ == "__main__":
    main()
