"""`harness doctor`: installed versions, hardware, what a run with these settings would use, and what prevents it.

It uses no network and shows no key.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.augmentation import per_image_settings
from harness.config.names import data_name
from harness.config.recipe import make_config
from harness.config.settings import WANDB, Config
from harness.utils.environment import git_state, processor, usable_cpus, version
from harness.utils.errors import HarnessError, first_line
from harness.utils.text import counted

if TYPE_CHECKING:
    import torch

OPTIONAL = ("psycopg", "onnx", "onnxruntime", "torch-lr-finder", "lightning", "wandb-workspaces")
BAD = {
    "lightning": (
        {"2.6.2", "2.6.3"},
        "a malicious upload",
        "pip uninstall lightning, and renew the keys of this machine",
    )
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
MEMINFO = "/proc/meminfo"  # of Linux
MIN_DISK, LOW_DISK = 200 * 2**20, 2 * 2**30  # bytes: one run of the custom ResNet, and several of them
DOWNLOADS = {"cifar10": ("cifar-10-batches-py", "170 MB"), "cifar100": ("cifar-100-python", "169 MB")}


@dataclass(frozen=True)
class Diagnosis:
    """One fact about the machine or the settings, and the problem with it.

    Attributes:
        problem: empty where there is none.
        remedy: what to do about the problem.
        fatal: whether the problem prevents a run.
    """

    group: str
    name: str
    value: str
    problem: str = ""
    remedy: str = ""
    fatal: bool = False


def diagnose(settings: Mapping[str, Any] | None = None) -> list[Diagnosis]:
    """Return the diagnoses of this machine and of a run with these settings.

    Raises:
        UsageError: the settings are invalid.
    """
    config = make_config(settings or {})
    sections: list[Callable[[Config], Iterator[Diagnosis]]] = [
        _versions,
        _machine,
        _wandb,
        _other_trackers,
        _data,
        _disk,
        _run,
    ]
    return [_redacted(diagnosis) for section in sections for diagnosis in section(config)]


def is_run_possible(diagnoses: Sequence[Diagnosis]) -> bool:
    """Return whether no diagnosis prevents a run."""
    return not any(each.fatal for each in diagnoses)


def to_dict(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """Return plain values for `--json`."""
    return {
        "possible": is_run_possible(diagnoses),
        "problems": sum(bool(each.problem) for each in diagnoses),
        "findings": [asdict(each) for each in diagnoses],
    }


def diagnosis_text(diagnoses: Sequence[Diagnosis]) -> str:
    """Return the diagnoses as text: one line each, with a problem and its remedy below."""
    lines, group = [], ""
    width = max(len(each.name) for each in diagnoses)
    for each in diagnoses:
        if each.group != group:
            group = each.group
            lines += ["", group]
        lines.append(f"  {each.name:<{width}}  {each.value}")
        if each.problem:
            lines.append(f"  {'':<{width}}  {'error' if each.fatal else 'warning'}: {each.problem}; {each.remedy}")
    problems = sum(bool(each.problem) for each in diagnoses)
    ending = f"a run is {'' if is_run_possible(diagnoses) else 'not '}possible"
    return "\n".join([*lines[1:], "", f"{problems or 'no'} problem{'' if problems == 1 else 's'}; {ending}"])


def redact(text: str) -> str:
    """Return text without the user and password of any URL in it, and without the API key."""
    key = os.environ.get("WANDB_API_KEY")
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1***@", text.replace(key, "***") if key else text)


def _redacted(diagnosis: Diagnosis) -> Diagnosis:
    value, problem, remedy = map(redact, (diagnosis.value, diagnosis.problem, diagnosis.remedy))
    return replace(diagnosis, value=value, problem=problem, remedy=remedy)


def _fatal(group: str, name: str, value: str, error: HarnessError, remedy: str = "") -> Diagnosis:
    """Return the diagnosis of an error whose message is `problem; remedy`; `remedy` is for a message without one."""
    problem, _, own_remedy = str(error).rpartition("; ")
    return Diagnosis(group, name, value, problem or str(error), own_remedy if problem else remedy, fatal=True)


def required() -> dict[str, str]:
    """Return package -> minimum version, from the metadata of this distribution."""
    versions = {}
    for line in metadata.requires("vision-harness") or []:
        match = re.match(r"([\w.-]+)(?:\[\w+\])?\s*>=\s*([\w.]+)", line)
        if match and "extra ==" not in line:
            versions[match[1]] = match[2]
    return versions


def version_numbers(version: str) -> tuple[int, ...]:
    """Return `2.10.1+cpu` as (2, 10, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_version(name: str, installed: str, minimum: str) -> Diagnosis:
    """Compare the version of an installed package (empty: not installed) with its minimum and with known bad ones."""
    diagnosis = Diagnosis("versions", name, installed or "-")
    if not installed:
        remedy = f"pip install '{name}>={minimum}'"
        return replace(diagnosis, problem=f"{name} is not installed", remedy=remedy, fatal=name not in DISPENSABLE)
    if name in BAD and installed in BAD[name][0]:
        return replace(diagnosis, problem=f"{name} {installed} is {BAD[name][1]}", remedy=BAD[name][2])
    if minimum and version_numbers(installed) < version_numbers(minimum):
        problem = f"harness needs {name} {minimum} or newer"
        return replace(diagnosis, problem=problem, remedy=f"pip install -U '{name}>={minimum}'")
    return diagnosis


DISPENSABLE = {"wandb", "albumentations", "grad-cam", "optuna", "scikit-learn", "rich", "scipy"}  # a run works without


def _versions(config: Config) -> Iterator[Diagnosis]:
    yield Diagnosis("versions", "harness", version("vision-harness") or "?")
    yield Diagnosis("versions", "python", platform.python_version())
    for name, minimum in required().items():
        yield check_version(name, version(name), minimum)
    for name in OPTIONAL:
        if installed := version(name):
            yield check_version(name, installed, "")
    yield _torch_and_torchvision()


def _torch_and_torchvision() -> Diagnosis:
    """Return whether torch and torchvision work together: a compiled operation of torchvision is called."""
    name, versions = "torch + torchvision", f"{version('torch')} + {version('torchvision')}"
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5)
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        line = first_line(error)
        remedy = "pip install -U torch torchvision together, from one index"
        return Diagnosis("versions", name, versions, f"they do not work together ({line})", remedy, fatal=True)
    return Diagnosis("versions", name, "work together")


def _machine(config: Config) -> Iterator[Diagnosis]:
    yield Diagnosis("machine", "system", platform.platform())
    yield Diagnosis("machine", "processor", f"{processor()}, {usable_cpus()} cores for this process")
    yield Diagnosis("machine", "flags", " ".join(flag for flag in CPU_FLAGS if flag in _cpu_flags()) or "-")
    total, free = _memory()
    memory = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
    problem = "too little memory for the custom ResNet at batch size 512" if 0 < free < 4 * 2**30 else ""
    yield Diagnosis("machine", "memory", memory, problem, "set --grad-accumulation 4 or --auto-batch")
    try:
        import torch
    except (ImportError, OSError):
        return
    is_cuda_available = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if is_cuda_available else 0):
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
        yield Diagnosis("machine", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory}")
    if not is_cuda_available and shutil.which("nvidia-smi") and Path("/dev/nvidia0").exists():
        yield Diagnosis("machine", "cuda", "-", "torch cannot use the GPU", "install a torch built for CUDA")
    yield Diagnosis("machine", "threads", f"{torch.get_num_threads()} (torch)")


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((set(line.split()) for line in file if line.startswith(("flags", "Features"))), set())
    except OSError:
        return set()


def _memory() -> tuple[int, int]:
    """Return total and available memory, bytes; zeros where the system does not report them."""
    try:
        with open(MEMINFO, encoding="ascii") as file:
            lines = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if len(line.split()) > 1}
        return lines["MemTotal"], lines["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return 0, 0


def _wandb(config: Config) -> Iterator[Diagnosis]:
    from harness.tracking.wandb.init import has_api_key, resolve_mode

    group, is_required = "W&B", config.wandb == "online"
    if WANDB not in config.tracker:
        yield Diagnosis(group, "mode", f"not in --tracker {','.join(config.tracker)}")
        return
    if not version("wandb"):
        yield Diagnosis(
            group,
            "mode",
            "none",
            "W&B is not installed: runs have only their journal",
            "pip install wandb",
            is_required,
        )
        return
    try:
        mode = resolve_mode(config.wandb)
    except HarnessError as error:
        yield _fatal(group, "WANDB_MODE", os.environ.get("WANDB_MODE", ""), error)
        return
    has_key = has_api_key()
    yield Diagnosis(group, "login", "an API key was found" if has_key else "no API key was found")
    resolved = ("online" if has_key else "offline") if mode == "auto" else mode
    is_key_missing = mode == "online" and not has_key
    problem = "online mode needs an API key" if is_key_missing else ""
    remedy = "run `wandb login`, or set --wandb offline"
    yield Diagnosis(group, "mode", f"{config.wandb}: {resolved}", problem, remedy, is_key_missing)
    yield Diagnosis(group, "server", os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai (default)")
    names = sorted(name for name in os.environ if name.startswith("WANDB_"))
    yield Diagnosis(group, "environment", " ".join(names) or "no WANDB_ variables")


def _other_trackers(config: Config) -> Iterator[Diagnosis]:
    from harness.tracking.backends.registry import check_trackers, other_trackers

    for kind in other_trackers(config):
        try:
            check_trackers(config.replace(tracker=(kind,)))
        except HarnessError as error:
            yield _fatal("trackers", kind, "-", error)
        else:
            yield Diagnosis("trackers", kind, version(kind) or "installed")


def _data(config: Config) -> Iterator[Diagnosis]:
    folder = Path(config.data_dir).expanduser()
    if config.data == "digits":
        problem = "" if version("scikit-learn") else "scikit-learn is not installed"
        yield Diagnosis("data", "digits", "part of scikit-learn", problem, "pip install scikit-learn", bool(problem))
    elif config.data in DOWNLOADS:
        yield _downloadable(config, folder)
    elif config.data in ("folder", "table"):
        yield _files(config)
    else:
        reader = "timm's create_dataset" if "/" in config.data else "a plug-in"
        yield Diagnosis("data", config.data, f"not checked: read by {reader}")


def _downloadable(config: Config, folder: Path) -> Diagnosis:
    name, size = DOWNLOADS[config.data]
    path = folder / name
    if path.is_dir():
        return Diagnosis("data", config.data, f"in {path}")
    problem = f"not in {folder}"
    if not config.download:
        return Diagnosis(
            "data",
            config.data,
            problem,
            "it is missing and --download is off",
            "set --download True or --data-dir",
            fatal=True,
        )
    remedy = "without a network, set --data-dir to its folder, or use --recipe digits"
    return Diagnosis("data", config.data, f"{problem}: a run downloads it first ({size})", problem, remedy)


def _files(config: Config) -> Diagnosis:
    from harness.checks.doctor_data import check_images
    from harness.data.registry import list_files

    try:
        listing = list_files(config)
        assert listing is not None
        checked = check_images(config, listing)
    except HarnessError as error:
        return _fatal("data", config.data, config.data_dir, error, "set --data-dir")
    images = sum(map(len, listing.splits.values()))
    value = f"{config.data_dir}: {images:,} images in {counted(len(listing.classes), 'class', 'classes')}; {listing.origin}; {checked}"
    return Diagnosis("data", config.data, value)


def _disk(config: Config) -> Iterator[Diagnosis]:
    output = Path(config.output).expanduser()
    existing = next((path for path in (output, *output.absolute().parents) if path.exists()), Path("/"))
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        yield Diagnosis(
            "disk", "output", str(output), f"cannot write to {existing}", "choose another --output", fatal=True
        )
        return
    free = shutil.disk_usage(existing).free
    problem = "little space for runs" if free < LOW_DISK else ""
    remedy = "free some space, or choose another --output"
    yield Diagnosis("disk", "output", f"{output}: {free / 2**30:.1f} GiB free", problem, remedy, free < MIN_DISK)
    state = git_state()
    commit = f"commit {state['commit'][:12]}{', with uncommitted changes' if state['changed'] else ''}" if state else ""
    yield Diagnosis("disk", "git", commit or "not a git checkout")


def _run(config: Config) -> Iterator[Diagnosis]:
    """Yield what `harness run` would choose for each `auto`."""
    try:
        from harness.training import device as devices
    except (ImportError, OSError):
        return  # a diagnosis of the versions says so
    data = data_name(config.data, config.data_dir)
    summary = {"batch_size": f"batch size {config.batch_size}", "epochs": counted(config.epochs, "epoch", "epochs")}
    model = "" if "model" in config.undecided else f"{config.model} on "
    known = [f"{model}{data}", *(text for name, text in summary.items() if name not in config.undecided)]
    yield Diagnosis("run", "recipe", f"{config.recipe}: {', '.join(known)}")
    if config.undecided:
        yield Diagnosis("run", "auto", f"chosen from the data when a run begins: {', '.join(sorted(config.undecided))}")
    try:
        device = devices.pick_device(config.device)
    except HarnessError as error:
        yield _fatal("run", "device", config.device, error)
        return
    yield Diagnosis("run", "device", str(device))
    precision = devices.pick_precision(config.precision, device)
    if device.type == "cpu" and devices.cpu_has_bf16():
        precision += f" (bfloat16 was measured at {devices.measure_bf16_speedup():g} times the speed of float32)"
    yield Diagnosis("run", "precision", precision)
    yield Diagnosis("run", "loader", _loader(config, device))


def _loader(config: Config, device: torch.device) -> str:
    """Return the loader that a run would take, with the number of its processes, as far as the settings decide it."""
    from harness.data.worker_loader import count_workers

    count = count_workers(config.workers, device)
    processes = f"timm, {count} worker process{'' if count == 1 else 'es'}" if count else "timm, in the main process"
    is_per_image = config.augment != "none" and bool(per_image_settings(config))
    may_fit = config.augment != "albumentations" and config.crop != "resized" and not is_per_image
    may_get_policy = "auto_augment" in config.undecided and config.augment == "timm" and config.data != "digits"
    is_known_to_fit = config.data in (*DOWNLOADS, "digits") and not may_get_policy
    if config.loader == "resident" or (config.loader == "auto" and may_fit and is_known_to_fit):
        return "resident"
    if config.loader == "auto" and may_fit:
        policy = " and auto_augment becomes none" if may_get_policy else ""
        return f"resident where the images fit on the device{policy}, else {processes}"
    return processes
