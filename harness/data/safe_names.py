"""Which names and folders of data sets timm's readers may get: a recipe from elsewhere must not run code through them.

webdataset gives text such as `pipe:COMMAND` to a shell, tensorflow_datasets loads `NAMESPACE:NAME` as Python code from
elsewhere, and `datasets` before version 4 runs a script that lies beside the data.
"""

from __future__ import annotations

import os
import re
from importlib import metadata

from harness.config.settings import Config
from harness.utils.errors import DataError, UsageError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|.*(\||::|://)", re.DOTALL)
TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w+.-]+)?(:[\d*]+(\.[\d*]+){2})?", re.ASCII)  # NAME/CONFIG:VERSION
FIRST_WITHOUT_SCRIPTS = 4  # version of `datasets`
MAKE_THEIR_FOLDER = ("hfds", "hfids")  # it is only a cache


def local_folder(config: Config) -> str:
    """Return the absolute path of `data_dir`, which no reader takes for an address or a command.

    Raises:
        UsageError: `data_dir` is no local path, or the reader of `data` could run code that the name stands for.
        DataError: there is no such folder, and the reader makes none.
    """
    prefix, _, name = config.data.partition("/")
    prefix = prefix.lower()
    if SCHEME.match(config.data_dir):
        raise UsageError(
            f"data_dir={config.data_dir!r} is an address or a command; {config.data} is read from a local folder: set --data-dir to its path"
        )
    if prefix == "tfds" and not TFDS_NAME.fullmatch(name):
        raise UsageError(f"data={config.data!r}: need tfds/NAME, tfds/NAME/CONFIG or either with :VERSION")
    if prefix in MAKE_THEIR_FOLDER:
        if SCHEME.match(name):
            raise UsageError(f"data={config.data!r}: need {prefix}/USER/NAME, or {prefix}/ and a local folder")
        _check_datasets_version(config.data)
    folder = os.path.abspath(os.path.expanduser(config.data_dir))
    downloads = prefix in MAKE_THEIR_FOLDER or (config.download and prefix != "wds")
    if not os.path.isdir(folder) and not downloads:
        remedy = "" if prefix == "wds" else ", or --download True"
        raise DataError(
            f"{config.data} cannot be loaded from {folder}: there is no such folder; set --data-dir to the folder that holds it{remedy}"
        )
    return folder


def _check_datasets_version(data: str) -> None:
    """Refuse versions of `datasets` that run scripts of a data set, some of them without being asked to."""
    try:
        version = metadata.version("datasets")
    except metadata.PackageNotFoundError:  # timm says what to install
        return
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < FIRST_WITHOUT_SCRIPTS:
        raise UsageError(
            f"data={data}: datasets {version} can run code that comes with a data set; install datasets>={FIRST_WITHOUT_SCRIPTS}"
        )
