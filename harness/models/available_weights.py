"""Whether the pretrained weights of a model can be had: in the cache, or by a download that is tried for a limited time."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

from timm.models import get_pretrained_cfg

from harness.config.init_source import HUB
from harness.models.names import check_name
from harness.utils.errors import first_line

ANSWER_SECONDS = 10.0  # within which the server has to answer
DOWNLOAD_SECONDS = 600.0
LONGEST_DOWNLOAD = 86_400.0  # seconds, of weights that the user has asked for
# The names under which timm looks for weights in a repository, in its order.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def has_weights(name: str) -> bool:
    """Return whether there are pretrained weights of a model; those of a folder or of the Hub always have."""
    cfg = None if ":" in name else get_pretrained_cfg(name)
    return ":" in name or (cfg is not None and bool(cfg.has_weights))


def why_no_weights(
    name: str, answer_seconds: float = ANSWER_SECONDS, download_seconds: float = DOWNLOAD_SECONDS
) -> str:
    """Return why the pretrained weights of a timm model cannot be had; empty when they are in the cache afterwards.

    They are downloaded if a server answers in time. timm itself tries for a minute where there is no network.

    Raises:
        UsageError: there is no such model.
    """
    check_name(name)
    if not has_weights(name):
        return f"{name} has no pretrained weights"
    source, colon, rest = name.partition(":")
    if colon and source == "local-dir":
        return ""
    cfg = None if colon else get_pretrained_cfg(name)
    if cfg is not None and cfg.file:
        return ""
    if cfg is None or cfg.hf_hub_id:
        repository, file = (rest, None) if cfg is None else (str(cfg.hf_hub_id), cfg.hf_hub_filename)
        return _why_not_from_hub(repository, (file,) if file else WEIGHT_FILES, answer_seconds, download_seconds)
    return _why_not_from_url(str(cfg.url), answer_seconds) if cfg.url else ""


def why_no_config(name: str, answer_seconds: float = ANSWER_SECONDS, download_seconds: float = DOWNLOAD_SECONDS) -> str:
    """Return why the configuration of a model `hf-hub:REPOSITORY` cannot be had; empty when it is in the cache afterwards.

    Other models have theirs in timm or in a folder.
    """
    if not name.startswith(HUB):
        return ""
    files, what = ("config.json",), "its configuration"
    return _why_not_from_hub(name.removeprefix(HUB), files, answer_seconds, download_seconds, what)


def _why_not_from_hub(
    repository: str,
    files: tuple[str, ...],
    answer_seconds: float,
    download_seconds: float,
    what: str = "its pretrained weights",
) -> str:
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        return "pretrained weights need the package huggingface_hub"
    repository, _, revision = repository.partition("@")
    for file in files:
        if isinstance(huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None), str):
            return ""
    if constants.HF_HUB_OFFLINE:
        return f"{what} cannot be found in the cache, and HF_HUB_OFFLINE is set"
    found: list[str] = []

    def find_file() -> None:
        for file in files:
            url = huggingface_hub.hf_hub_url(repository, file, revision=revision or None)
            try:
                huggingface_hub.get_hf_file_metadata(url, timeout=answer_seconds)
            except EntryNotFoundError:
                if file == files[-1]:
                    raise
            else:
                found.append(file)
                return

    reason = _try(find_file, answer_seconds) or _try(
        lambda: huggingface_hub.hf_hub_download(repository, found[0], revision=revision or None), download_seconds
    )
    return f"{what} cannot be downloaded ({reason})" if reason else ""


def _why_not_from_url(url: str, answer_seconds: float) -> str:
    from torch.hub import get_dir

    if (Path(get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file():
        return ""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - timm's own address
    reason = _try(lambda: urllib.request.urlopen(request, timeout=answer_seconds).close(), answer_seconds)  # noqa: S310
    return f"its pretrained weights cannot be downloaded ({reason})" if reason else ""


def _try(action: Callable[[], object], seconds: float) -> str:
    """Return the reason why an action failed or did not end in time; empty where it succeeded.

    It runs in a thread, since the time to find the address of a server cannot be limited otherwise.
    """
    outcome: list[str] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the network and the library raise anything
            outcome.append(first_line(error)[:120])
        else:
            outcome.append("")

    thread = threading.Thread(target=attempt, name="pretrained weights", daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return outcome[0] if outcome else f"no answer within {seconds:.0f} s"
