"""`harness doctor`: facts, problems with remedies, no secrets."""

import json
import os
import shutil
import sys

import pytest

from harness.checks import doctor
from harness.cli.main import cli
from harness.config.recipe import make_config
from harness.data.own_datasets import register_dataset
from harness.data.registry import load_dataset
from harness.tracking.wandb.init import resolve_mode
from harness.utils.environment import version
from harness.utils.errors import HarnessError, UsageError
from tests.support.commands import command
from tests.support.image_folders import make_class_folders

SECRET = "abcdef0123456789" * 3


def by_name(diagnoses):
    return {each.name: each for each in diagnoses}


def section(diagnose, **settings):
    """Return the diagnoses of one section."""
    return by_name(diagnose(make_config(settings)))


@pytest.mark.slow
def test_a_machine_that_can_run_is_reported_as_text_and_as_json(tmp_path):
    result = json.loads(command("doctor", "--recipe", "digits", "--json", cwd=tmp_path, check=0).stdout)
    assert result["possible"]
    values = {each["name"]: each["value"] for each in result["findings"]}
    assert values["mode"] == "auto: offline"
    assert values["loader"] == "resident" and values["recipe"].startswith("digits: ")
    assert "a run is possible" in doctor.diagnosis_text([doctor.Diagnosis(**each) for each in result["findings"]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"data": "folder", "data_dir": "nowhere"}, "folder"),
        ({"data": "cifar10", "download": False, "data_dir": "nowhere"}, "cifar10"),
        ({"recipe": "digits", "device": "cuda:99"}, "device"),
        ({"recipe": "digits", "output": "/proc/nothing"}, "output"),
        ({"recipe": "digits", "wandb": "online"}, "mode"),
        ({"recipe": "digits", "tracker": "tensorboard"}, "tensorboard"),
    ],
)
def test_what_makes_a_run_impossible_is_named_with_a_remedy(settings, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ["tensorboard", *(module for module in sys.modules if module.startswith("tensorboard."))]:
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "harness.tracking.backends.tensorboard", raising=False)
    fatal = [each for each in doctor.diagnose(settings) if each.fatal]
    assert [each.name for each in fatal] == [name]
    assert fatal[0].problem
    assert fatal[0].remedy


def test_torch_and_torchvision_that_do_not_fit_each_other_prevent_a_run(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist\nsomewhere")

    assert doctor._torch_and_torchvision().value == "work together"
    monkeypatch.setattr("torchvision.ops.nms", fail)
    diagnosis = doctor._torch_and_torchvision()
    assert diagnosis.fatal and diagnosis.remedy == "pip install -U torch torchvision together, from one index"
    assert diagnosis.problem == "they do not work together (operator torchvision::nms does not exist)"


@pytest.mark.parametrize(("wandb", "is_fatal"), [("auto", False), ("online", True)])
def test_without_wandb_a_run_is_possible_unless_it_is_required(monkeypatch, wandb, is_fatal):
    monkeypatch.setattr(doctor, "version", lambda name: "" if name == "wandb" else version(name))
    diagnosis = section(doctor._wandb, recipe="digits", wandb=wandb)["mode"]
    assert diagnosis.problem == "W&B is not installed: runs have only their journal"
    assert (diagnosis.fatal, diagnosis.remedy) == (is_fatal, "pip install wandb")


def test_a_tracker_that_is_installed_is_shown_with_its_version():
    pytest.importorskip("tensorboard", reason="this machine has no TensorBoard")
    settings = {"recipe": "digits", "tracker": "tensorboard"}
    diagnosis = section(doctor._other_trackers, **settings)["tensorboard"]
    assert diagnosis.value == version("tensorboard") and not diagnosis.problem
    assert section(doctor._wandb, **settings)["mode"].value == "not in --tracker tensorboard"


def test_data_that_a_run_downloads_is_a_problem_that_prevents_no_run(tmp_path):
    settings = {"data": "cifar10", "data_dir": str(tmp_path)}
    diagnosis = section(doctor._data, **settings)["cifar10"]
    assert "a run downloads it first (170 MB)" in diagnosis.value and not diagnosis.fatal
    assert "set --data-dir to its folder, or use --recipe digits" in diagnosis.remedy
    (tmp_path / "cifar-10-batches-py").mkdir()
    diagnosis = section(doctor._data, **settings)["cifar10"]
    assert (diagnosis.value, diagnosis.problem) == (f"in {tmp_path / 'cifar-10-batches-py'}", "")


def test_data_of_others_is_not_checked_and_what_reads_it_is_named():
    assert section(doctor._data, data="hfds/beans")["hfds/beans"].value == (
        "not checked: read by timm's create_dataset"
    )
    register_dataset(lambda folder: [], name="for_the_doctor")
    assert section(doctor._data, data="for_the_doctor")["for_the_doctor"].value == ("not checked: read by a plug-in")


def test_the_memory_is_what_linux_says_and_nothing_elsewhere(tmp_path, monkeypatch):
    total, available = doctor._memory()
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") and 0 < available <= total
    monkeypatch.setattr(doctor, "MEMINFO", str(tmp_path / "none"))
    assert doctor._memory() == (0, 0)


@pytest.mark.parametrize(("free", "has_problem"), [(2, True), (5, False), (0, False)])  # 0: the system does not say
def test_too_little_memory_for_the_default_recipe_is_a_warning_with_its_remedy(monkeypatch, free, has_problem):
    monkeypatch.setattr(doctor, "_memory", lambda: (8 * 2**30, free * 2**30))
    diagnosis = section(doctor._machine)["memory"]
    assert diagnosis.value == f"{free:.1f} GiB free of 8.0" and not diagnosis.fatal
    assert bool(diagnosis.problem) == has_problem and diagnosis.remedy == "set --grad-accumulation 4 or --auto-batch"


def test_an_output_folder_below_a_file_prevents_a_run(tmp_path):
    (tmp_path / "file").touch()
    diagnosis = section(doctor._disk, output=str(tmp_path / "file" / "runs"))["output"]
    assert diagnosis.fatal and diagnosis.problem == f"cannot write to {tmp_path / 'file'}"
    assert diagnosis.remedy == "choose another --output"


@pytest.mark.parametrize(("free", "has_problem", "is_fatal"), [(3, False, False), (1, True, False), (0.1, True, True)])
def test_little_space_is_a_warning_and_too_little_for_one_run_prevents_it(monkeypatch, free, has_problem, is_fatal):
    usage = shutil.disk_usage("/")._replace(free=int(free * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    diagnosis = section(doctor._disk)["output"]
    assert (bool(diagnosis.problem), diagnosis.fatal) == (has_problem, is_fatal)
    assert f"{free:.1f} GiB free" in diagnosis.value


def test_the_json_counts_the_problems_and_says_whether_a_run_is_possible():
    fine, bad = doctor.Diagnosis("disk", "git", "-"), doctor.Diagnosis("disk", "output", "x", "full", "free some", True)
    warning = doctor.Diagnosis("disk", "git", "-", "old", "update")
    assert doctor.to_dict([fine, warning]).keys() == {"possible", "problems", "findings"}
    assert doctor.to_dict([fine, warning])["possible"] and doctor.to_dict([fine, warning])["problems"] == 1
    values = doctor.to_dict([fine, warning, bad])
    assert (values["possible"], values["problems"], len(values["findings"])) == (False, 2, 3)
    assert [doctor.Diagnosis(**each) for each in json.loads(json.dumps(values["findings"]))] == [fine, warning, bad]


@pytest.mark.parametrize("fault", ["broken", "dangling", "alike", "fraction"])
def test_data_that_a_run_refuses_is_refused_for_the_same_reason(tmp_path, fault):
    folder, settings = make_class_folders(tmp_path / "images", ("",), count=1 if fault == "alike" else 3), {}
    match fault:
        case "broken":
            (folder / "cat/2.png").write_bytes((folder / "cat/2.png").read_bytes()[:40])
        case "dangling":
            (folder / "cat/3.png").symlink_to(folder / "cat/nothing.png")
        case "fraction":
            settings = {"val_fraction": 0.01}
    config = {"data": "folder", "data_dir": str(folder), "device": "cpu", **settings}
    with pytest.raises(HarnessError) as refused:
        load_dataset(make_config(config))
    diagnosis = by_name(doctor.diagnose(config))["folder"]
    assert diagnosis.fatal and f"{diagnosis.problem}; {diagnosis.remedy}" == str(refused.value)
    if fault in ("broken", "dangling"):
        skipped = by_name(doctor.diagnose({**config, "bad_images": "skip"}))["folder"]
        assert not skipped.problem and "1 unreadable ones are skipped" in skipped.value


def test_of_many_images_some_of_each_split_are_read_and_the_number_is_named(tmp_path, monkeypatch):
    folder = make_class_folders(tmp_path / "images", count=6)
    monkeypatch.setattr("harness.checks.doctor_data.MOST_IMAGES", 8)
    config = {"data": "folder", "data_dir": str(folder), "device": "cpu"}
    assert "24 images in 2 classes" in (value := by_name(doctor.diagnose(config))["folder"].value)
    assert value.endswith("8 of them, evenly spread, were read")
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"")
    assert by_name(doctor.diagnose(config))["folder"].fatal


def test_the_command_ends_with_9_where_no_run_is_possible(tmp_path):
    result = command("doctor", "--data", "folder", "--data-dir", "nowhere", cwd=tmp_path, check=9)
    assert "a run is not possible" in result.stdout


@pytest.mark.parametrize(
    ("settings", "loader"),
    [
        (
            {},
            "resident where the images fit on the device and auto_augment becomes none, else timm, 2 worker processes",
        ),
        ({"auto_augment": "none"}, "resident where the images fit on the device, else timm, 2 worker processes"),
        ({"auto_augment": "3a"}, "timm, 2 worker processes"),
        ({"vflip": 0.5}, "timm, 2 worker processes"),
        (
            {"vflip": 0.5, "augment": "none"},
            "resident where the images fit on the device, else timm, 2 worker processes",
        ),
        ({"augment": "albumentations"}, "timm, 2 worker processes"),
        ({"loader": "timm", "workers": 1}, "timm, 1 worker process"),
        ({"loader": "timm", "workers": 0}, "timm, in the main process"),
        ({"loader": "resident"}, "resident"),
    ],
)
def test_the_loader_is_named_with_the_number_of_its_processes(settings, loader, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("harness.utils.environment.cgroup_cpu_limit", lambda: None)
    folder = make_class_folders(tmp_path / "images")
    diagnoses = doctor.diagnose({"data": "folder", "data_dir": str(folder), "device": "cpu", **settings})
    assert by_name(diagnoses)["loader"].value == loader


@pytest.mark.parametrize(
    ("settings", "line", "loader"),
    [
        ({"data": "digits", "recipe": "auto"}, "auto: digits", "resident"),
        ({"data": "cifar10", "recipe": "finetune"}, "finetune: cifar10", "resident where the images fit"),
        ({"data": "cifar10", "batch_size": 32, "recipe": "auto"}, "auto: cifar10, batch size 32", "resident where"),
        ({"data": "cifar10"}, "custom-resnet: custom_resnet on cifar10, batch size 512, 24 epochs", "resident"),
    ],
)
def test_what_is_still_to_be_chosen_is_not_said_to_be_known(settings, line, loader, tmp_path):
    diagnoses = by_name(doctor.diagnose({"data_dir": str(tmp_path), "device": "cpu", **settings}))
    assert diagnoses["recipe"].value == line and diagnoses["loader"].value.startswith(loader)
    assert diagnoses["loader"].value == "resident" or "auto_augment becomes none" in diagnoses["loader"].value


def test_no_key_and_no_password_is_shown(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", "https://someone:hidden@wandb.example.org")
    text = doctor.diagnosis_text(doctor.diagnose({"recipe": "digits", "data_dir": f"x{SECRET}"}))
    assert SECRET not in text
    assert "hidden" not in text
    assert str(len(SECRET)) not in by_name(doctor.diagnose({"recipe": "digits"}))["login"].value
    assert "https://***@wandb.example.org" in text
    assert "auto: online" in text


def test_an_unknown_mode_of_wandb_is_named_by_doctor_and_refused_by_a_run(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    diagnosis = by_name(doctor.diagnose({"recipe": "digits"}))["WANDB_MODE"]
    assert diagnosis.fatal
    assert diagnosis.problem.startswith("WANDB_MODE='onlin'")
    with pytest.raises(UsageError, match=r"WANDB_MODE='onlin': need online, offline or disabled"):
        resolve_mode("auto")
    assert resolve_mode("disabled") == "disabled"


@pytest.mark.parametrize(
    ("name", "installed", "minimum", "is_problem", "fatal"),
    [
        ("torch", "2.9.1+cpu", "2.10", True, False),
        ("torch", "2.10.0", "2.10", False, False),
        ("torch", "", "2.10", True, True),
        ("wandb", "", "0.31", True, False),
        ("lightning", "2.6.2", "", True, False),
        ("lightning", "2.6.6", "", False, False),
    ],
)
def test_versions_are_compared_as_numbers_and_bad_ones_are_known(name, installed, minimum, is_problem, fatal):
    diagnosis = doctor.check_version(name, installed, minimum)
    assert (bool(diagnosis.problem), diagnosis.fatal) == (is_problem, fatal)


def test_every_command_stands_in_one_section_of_the_help_with_its_whole_sentence(tmp_path):
    text = command("--help", cwd=tmp_path, check=0).stdout
    assert "..." not in text.replace("[ARGS]...", "")
    assert sum(len(commands) for commands in cli.sections.values()) == len(cli.commands)
    for name in cli.commands:
        page = command(name, "--help", cwd=tmp_path, check=0).stdout if name == "verify" else cli.commands[name].help
        assert f"harness {name}" in page, name


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run", "my pictures"], "--data-dir 'my pictures'"),
        (["run", "my", "pictures"], "--data-dir 'my pictures'"),
        (["lr-find", "table.csv"], "--data-dir table.csv"),
        (["doctor", "my pictures"], "--data-dir 'my pictures'"),
        (["run", "mine.yaml"], "--recipe mine.yaml"),
        (["run", "runs/r"], "--resume runs/r"),
        (["run", "--data", "my pictures"], "--data-dir 'my pictures'"),
        (["data", "--data", "my pictures"], "--data-dir 'my pictures'"),
        (["run", "photo.png"], ""),
        (["run", "nothing"], ""),
    ],
)
def test_an_existing_path_that_is_given_without_its_option_names_the_option(tmp_path, words, meant):
    (tmp_path / "my pictures").mkdir()
    for name in ("table.csv", "mine.yaml", "photo.png", "runs/r/config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    message = command(*words, cwd=tmp_path, check=2).stderr.splitlines()[-1]
    assert (f"did you mean {meant}?" in message) if meant else ("did you mean" not in message), message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evaluate"], "missing argument 'RUN'; see harness evaluate --help"),
        (["sweep"], "missing argument 'FILE'"),
        (["run", "digits"], "a recipe is given by --recipe digits"),
        (["run", "--flip", "maybe"], "flip='maybe': need True or False"),
        (["runn"], "'run'"),
        (["sync", "nowhere"], "`harness runs` lists the runs"),
    ],
)
def test_a_wrong_command_is_one_line_with_the_remedy(arguments, part, tmp_path):
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode in (2, 3)
    (line,) = result.stderr.strip().splitlines()
    assert part in line
    assert os.linesep not in line
