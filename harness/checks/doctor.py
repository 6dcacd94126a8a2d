"""`harness doctor`: what is installed, what the machine has, what a run would use, and what stands in its way.

Nothing here touches the network, and neither a key nor anything about it is shown.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.utils.environment import git_state, processor, usable_cpus, version
from harness.utils.errors import HarnessError

OPTIONAL = ("psycopg", "onnx", "onnxruntime", "torch-lr-finder", "lightning", "wandb-workspaces")
BAD = {
    "lightning": (
        {"2.6.2", "2.6.3"},
        "a malicious upload",
        "pip uninstall lightning, and renew the keys of this machine",
    )
}
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
SMALLEST, ROOMY = 200 * 2**20, 2 * 2**30  # bytes of disk: what one run of the custom ResNet leaves, and some of them
DOWNLOADS = {"cifar10": ("cifar-10-batches-py", "170 MB"), "cifar100": ("cifar-100-python", "169 MB")}


@dataclass(frozen=True)
class Diagnosis:
    """One fact, and what is wrong about it.

    Attributes:
        problem: empty where there is none. remedy: what to do about it.
        fatal: whether no run is possible because of it.
    """

    group: str
    name: str
    value: str
    problem: str = ""
    remedy: str = ""
    fatal: bool = False


def diagnose(given: Mapping[str, Any] | None = None) -> list[Diagnosis]:
    """Everything that can be said of this machine and of a run with these settings.

    Raises:
        UsageError: the settings themselves are wrong.
    """
    config = make_config(given or {})
    parts: list[Callable[[Config], Iterator[Diagnosis]]] = [_versions, _machine, _wandb, _data, _disk, _run]
    return [_clean(finding) for part in parts for finding in part(config)]


def to_dict(found: list[Diagnosis]) -> dict[str, Any]:
    """Plain values for `--json`."""
    told = [asdict(finding) for finding in found]
    return {"possible": not any(each.fatal for each in found), "problems": sum(bool(each.problem) for each in found), "findings": told}  # fmt: skip


def diagnosis_text(found: list[Diagnosis]) -> str:
    """The findings for a person: a line each, a problem and its remedy below."""
    lines, group = [], ""
    width = max(len(each.name) for each in found)
    for each in found:
        if each.group != group:
            group = each.group
            lines += ["", group]
        lines.append(f"  {each.name:<{width}}  {each.value}")
        if each.problem:
            lines.append(f"  {'':<{width}}  {'error' if each.fatal else 'warning'}: {each.problem}; {each.remedy}")
    problems = sum(bool(each.problem) for each in found)
    ending = "a run is not possible" if any(each.fatal for each in found) else "a run is possible"
    return "\n".join([*lines[1:], "", f"{problems or 'no'} problem{'' if problems == 1 else 's'}; {ending}"])


def redact(text: str) -> str:
    """Text without the user and password of any URL in it, and without the API key."""
    key = os.environ.get("WANDB_API_KEY")
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1***@", text.replace(key, "***") if key else text)


def _clean(finding: Diagnosis) -> Diagnosis:
    return replace(finding, value=redact(finding.value), problem=redact(finding.problem), remedy=redact(finding.remedy))


def required() -> dict[str, str]:
    """Package -> least version, as harness's own metadata has them."""
    found = {}
    for line in metadata.requires("vision-harness") or []:
        match = re.match(r"([\w.-]+)(?:\[\w+\])?\s*>=\s*([\w.]+)", line)
        if match and "extra ==" not in line:
            found[match[1]] = match[2]
    return found


def version_numbers(version: str) -> tuple[int, ...]:
    """`2.10.1+cpu` as (2, 10, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_version(name: str, there: str, least: str) -> Diagnosis:
    """An installed package (`there` empty: not installed), held against what is needed and known to be bad."""
    group = "versions"
    if not there:
        return Diagnosis(
            group, name, "-", f"{name} is not installed", f"pip install '{name}>={least}'", fatal=name not in SPARED
        )
    if name in BAD and there in BAD[name][0]:
        return Diagnosis(group, name, there, f"{name} {there} is {BAD[name][1]}", BAD[name][2])
    if least and version_numbers(there) < version_numbers(least):
        return Diagnosis(
            group, name, there, f"harness needs {name} {least} or newer", f"pip install -U '{name}>={least}'"
        )
    return Diagnosis(group, name, there)


SPARED = {"wandb", "albumentations", "grad-cam", "optuna", "scikit-learn", "rich", "scipy"}  # a run may do without


def _versions(config: Config) -> Iterator[Diagnosis]:
    yield Diagnosis("versions", "harness", version("vision-harness") or "?")
    yield Diagnosis("versions", "python", platform.python_version())
    for name, least in required().items():
        yield check_version(name, version(name), least)
    for name in OPTIONAL:
        if there := version(name):
            yield check_version(name, there, "")
    yield _pair()


def _pair() -> Diagnosis:
    """Whether torch and torchvision are of one build: an operation of torchvision's own is asked for."""
    torch, vision = version("torch"), version("torchvision")
    remedy = "pip install -U torch torchvision together, from one index"
    try:
        import torch as there
        from torchvision.ops import nms

        nms(there.tensor([[0.0, 0, 1, 1]]), there.ones(1), 0.5)
    except Exception as error:  # noqa: BLE001 - a broken install raises anything
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Diagnosis("versions", "torch + torchvision", f"{torch} + {vision}", f"they do not work together ({line})", remedy, fatal=True)  # fmt: skip
    return Diagnosis("versions", "torch + torchvision", "work together")


def _machine(config: Config) -> Iterator[Diagnosis]:
    yield Diagnosis("machine", "system", platform.platform())
    yield Diagnosis("machine", "processor", f"{processor()}, {usable_cpus()} cores for this process")
    yield Diagnosis("machine", "flags", " ".join(flag for flag in FLAGS if flag in _flags()) or "-")
    total, free = _memory()
    short = "too little memory for the custom ResNet at batch 512" if 0 < free < 4 * 2**30 else ""
    yield Diagnosis("machine", "memory", f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}", short, "set --grad-accumulation 4 or --auto-batch")  # fmt: skip
    try:
        import torch
    except (ImportError, OSError):
        return
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        left, whole = torch.cuda.mem_get_info(index)
        yield Diagnosis("machine", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {left / 2**30:.1f} GiB free of {whole / 2**30:.1f}")  # fmt: skip
    if not torch.cuda.is_available() and (shutil.which("nvidia-smi") and Path("/dev/nvidia0").exists()):
        yield Diagnosis(
            "machine", "cuda", "-", "there is a GPU that torch can not use", "install a torch built for CUDA"
        )
    yield Diagnosis("machine", "threads", f"{torch.get_num_threads()} of torch")


def _flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((set(line.split()) for line in file if line.startswith(("flags", "Features"))), set())
    except OSError:
        return set()


def _memory() -> tuple[int, int]:
    """Bytes in all and free; zeros where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if len(line.split()) > 1}
        return lines["MemTotal"], lines["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return 0, 0


def _wandb(config: Config) -> Iterator[Diagnosis]:
    from harness.tracking.wandb.init import has_api_key, resolve_mode

    group, word = "W&B", os.environ.get("WANDB_MODE", "")
    if not version("wandb"):
        yield Diagnosis(group, "mode", "none: not installed", "runs are in the journal only", "pip install wandb", config.wandb == "online")  # fmt: skip
        return
    try:
        mode = resolve_mode(config.wandb)
    except HarnessError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Diagnosis(group, "WANDB_MODE", word, what, remedy, fatal=True)
        return
    known = has_api_key()
    yield Diagnosis(group, "login", "a key is there" if known else "no key here")
    auto = "online" if known else "offline"
    needs = mode == "online" and not known
    yield Diagnosis(
        group, "mode", f"{config.wandb}: {auto if mode == 'auto' else mode}",
        "online is asked for, and there is no key" if needs else "", "wandb login, or --wandb offline", needs,
    )  # fmt: skip
    yield Diagnosis(group, "server", os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai (usual)")
    set_here = sorted(name for name in os.environ if name.startswith("WANDB_"))
    yield Diagnosis(group, "environment", " ".join(set_here) or "no WANDB_ variables")


def _data(config: Config) -> Iterator[Diagnosis]:
    folder = Path(config.data_dir).expanduser()
    if config.data == "digits":
        there = bool(version("scikit-learn"))
        yield Diagnosis("data", "digits", "comes with scikit-learn", "" if there else "scikit-learn is not installed", "pip install scikit-learn", not there)  # fmt: skip
    elif config.data in DOWNLOADS:
        name, size = DOWNLOADS[config.data]
        place = folder / name
        if place.is_dir():
            yield Diagnosis("data", config.data, f"in {place}")
        elif config.download:
            yield Diagnosis("data", config.data, f"not in {folder}: a run downloads it first ({size})", f"not in {folder}", "without a network, set --data-dir to where it lies, or try --recipe digits")  # fmt: skip
        else:
            yield Diagnosis("data", config.data, f"not in {folder}", "it is missing and --download is off", "set --download True or --data-dir", fatal=True)  # fmt: skip
    elif config.data == "folder":
        yield _folder(folder)
    else:
        yield Diagnosis("data", config.data, "not looked at: timm's create_dataset reads it")


def _folder(folder: Path) -> Diagnosis:
    from harness.data.listing import read_listing

    try:
        listing, layout = read_listing(folder)
    except HarnessError as error:
        what, _, remedy = str(error).rpartition("; ")
        return Diagnosis("data", "folder", str(folder), what or str(error), remedy or "set --data-dir", fatal=True)
    splits = ", ".join(sorted(layout.splits)) or "class folders, no splits"
    empty = not listing.files
    return Diagnosis("data", "folder", f"{folder}: {len(listing.files):,} pictures; {splits}", "no picture in it" if empty else "", "set --data-dir", empty)  # fmt: skip


def _disk(config: Config) -> Iterator[Diagnosis]:
    output = Path(config.output).expanduser()
    there = next((path for path in (output, *output.absolute().parents) if path.exists()), Path("/"))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        yield Diagnosis("disk", "output", str(output), f"{there} can not be written", "choose another --output", fatal=True)  # fmt: skip
        return
    free = shutil.disk_usage(there).free
    problem = "hardly room for a run" if free < ROOMY else ""
    yield Diagnosis("disk", "output", f"{output}: {free / 2**30:.1f} GiB free", problem, "free some space, or choose another --output", free < SMALLEST)  # fmt: skip
    state = git_state()
    value = f"commit {state['commit'][:12]}{', files differ from it' if state['changed'] else ''}" if state else "no checkout here"  # fmt: skip
    yield Diagnosis("disk", "git", value)


def _run(config: Config) -> Iterator[Diagnosis]:
    """What `harness run` would take for what is `auto`."""
    try:
        from harness.training import device as machine
    except (ImportError, OSError):
        return  # said above
    yield Diagnosis("a run", "recipe", f"{config.recipe}: {config.model} on {config.data}, batch {config.batch_size}, {config.epochs} epochs")  # fmt: skip
    try:
        device = machine.pick_device(config.device)
    except HarnessError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Diagnosis("a run", "device", config.device, what, remedy, fatal=True)
        return
    yield Diagnosis("a run", "device", str(device))
    precision = machine.pick_precision(config.precision, device)
    gain = f" (bfloat16 measured at {machine.measure_bf16_speedup():g} times the speed of float32)" if device.type == "cpu" and machine.cpu_has_bf16() else ""  # fmt: skip
    yield Diagnosis("a run", "precision", precision + gain)
    small = config.data in (*DOWNLOADS, "digits") and config.augment != "albumentations" and config.crop != "resized"
    loader = "resident" if config.loader == "auto" and small else config.loader
    yield Diagnosis("a run", "loader", f"{loader}{'' if loader == 'resident' else f', {config.workers} workers'}")
