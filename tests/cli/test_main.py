"""The command line: names of commands and options, helps, errors, exit statuses."""

import contextlib
import errno
import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

import harness
from harness.cli.commands import ALIASES, DAILY
from harness.cli.main import EPILOG, EXIT_STATUSES, cli, main
from harness.cli.options import setting_help, setting_options
from harness.cli.terminal import TerminalStream
from harness.config.other_names import _NAMES, _REMEDIES, NAMES_ELSEWHERE, REMEDIES_ELSEWHERE, settings_in
from harness.config.recipe import make_config
from harness.config.settings import AUTO, SHORT_NAMES, Config, canonical_name, coerce, normalize_name, setting_fields
from harness.sweep.command import START_RUN
from harness.sweep.schema import parse_sweep
from harness.utils import errors
from tests.support.commands import command

ROOT = Path(__file__).parents[2]
WITH_SETTINGS = sorted(name for name, one in cli.commands.items() if any(hasattr(part, "group") for part in one.params))


def parsed(name, *arguments):
    """The parameters of a command as click reads them."""
    return cli.commands[name].make_context(name, list(arguments), token_normalize_func=normalize_name).params


def error_line(*arguments, cwd, check):
    [line] = command(*arguments, cwd=cwd, check=check).stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def documented(text):
    """The settings that a help text lists."""
    return {
        canonical_name(found[1])
        for found in re.finditer(r"^  (?:-\w, )?--([a-z-]+)", text, re.M)
        if normalize_name(found[1]) in {normalize_name(name) for name in setting_fields()}
    }


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_its_command(alias, tmp_path):
    text = command(alias, "--help", cwd=tmp_path, check=0).stdout
    assert text.startswith(f"Usage: harness {ALIASES[alias]} ")
    assert f"harness {alias}" in text


@pytest.mark.parametrize("name", ["lr-find", "LR_FIND", "lrfind", "Find", "PLOT_SCHEDULE", "Run"])
def test_any_spelling_of_a_command_is_that_command(name):
    with click.Context(cli) as context:
        assert cli.get_command(context, name).name in ("lr-find", "plot", "run")


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--lr", "0.1"], "lr_max", "0.1"),
        (["--LR=0.1"], "lr_max", "0.1"),
        (["--LRMAX=0.1"], "lr_max", "0.1"),
        (["--lr_max", "0.1"], "lr_max", "0.1"),
        (["--Lr-Max", "find"], "lr_max", "find"),
        (["--opt", "adamw"], "optimizer", "adamw"),
        (["--wd", "0"], "weight_decay", "0"),
        (["-b", "64"], "batch_size", "64"),
        (["-b64"], "batch_size", "64"),
        (["-c", "digits"], "recipe", "digits"),
        (["--config=mine.yaml"], "recipe", "mine.yaml"),
        (["--compile=True"], "compile", "True"),
        (["--compile"], "compile", "true"),
        (["--Compile", "no"], "compile", "no"),
    ],
)
def test_short_forms_and_any_spelling_of_an_option_are_the_setting(arguments, setting, value):
    assert parsed("run", *arguments)[setting] == value


def test_a_short_name_is_the_setting_in_a_recipe_and_in_a_sweep_too():
    for short, name in SHORT_NAMES.items():
        assert canonical_name(short) == canonical_name(short.upper()) == name
        assert short not in setting_fields()


def test_the_help_of_run_shows_the_settings_of_daily_use_and_says_so(tmp_path):
    text = command("run", "--help", cwd=tmp_path, check=0).stdout
    assert documented(text) == set(DAILY)
    assert 20 <= len(DAILY) <= 30
    rest = len(setting_fields()) - len(DAILY)
    assert text.rstrip().endswith(f"These are the settings of daily use; {rest} more: harness run --help-all")


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_help_all_shows_every_setting_by_group_and_help_fewer(name):
    with click.Context(cli.commands[name], info_name=name) as context:
        short = cli.commands[name].get_help(context)
        context.meta["harness.help_all"] = True
        full = cli.commands[name].get_help(context)
    settings = {one.name for one in cli.commands[name].params if getattr(one, "group", "hidden") != "hidden"}
    own = {one.name for one in cli.commands[name].params} - settings | {"workers"} - settings
    assert documented(full) - own == settings
    shown = documented(short) - own
    assert (shown < settings and "--help-all" in short) or (shown == settings and "--help-all" not in short)
    for group in {setting_fields()[setting].metadata["group"] for setting in settings}:
        assert f"\n{group}:\n" in full


def test_help_all_is_an_option(tmp_path):
    text = command("run", "--help_all", cwd=tmp_path, check=0).stdout
    assert documented(text) == set(setting_fields())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--epcohs", "3"], "no such option --epcohs (did you mean '--epochs'?)"),
        (["run", "--Batch_Sise=3"], "no such option --Batch_Sise (did you mean '--batch-size'?)"),
        (["run", "--learning-rate", "1"], "no such option --learning-rate (did you mean '--lr-max'?)"),
        (["run", "--num_workers", "1"], "no such option --num_workers (did you mean '--workers'?)"),
        (["run", "--patience=3"], "no such option --patience (did you mean '--early-stop'?)"),
        (["run", "--val=0.1"], "no such option --val (did you mean '--val-fraction'?)"),
        (
            ["run", "--sanity-check"],
            "no such option --sanity-check; use --dry-run, which chooses and checks everything",
        ),
        (["run", "--verbose"], "no such option --verbose"),
        (["sweep", "x", "--run-cap", "3"], "no such option --run-cap; use --count, the number of trials"),
        (["evaluate", "x", "--spilt", "val"], "(did you mean '--split'?)"),
        (["trian"], "no such command 'trian' (did you mean 'train'?); see harness --help"),
        (["predct", "x"], "(did you mean 'predict'?)"),
        (["predict", "x"], "missing argument 'PATH...'; see harness predict --help"),
        (["run", "--epochs", "many"], "epochs='many': need a number"),
        (["run", "--schedule", "onecycle"], "did you mean 'one_cycle'"),
        (["export", "."], "say where to: --onnx FILE or --timm FOLDER; see harness export --help"),
        (["report"], "give a run directory, several, or a sweep's directory; `harness runs` lists them"),
        (["report", "--workspace"], "--workspace needs the run, group or sweep in W&B; add --wandb ENTITY/PROJECT/RUN"),
        (
            ["runs", "nothing"],
            "there is no folder nothing; run directories are in the folder that `harness run --output`",
        ),
        (["sync", ".", "--tracker", ""], "--tracker is empty; name at least one"),
        (["sync", ".", "--tracker", "tensorboard", "--link", "a/b"], "add wandb to --tracker, or leave --link out"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_nearest_remedy(arguments, says, tmp_path):
    assert says in error_line(*arguments, cwd=tmp_path, check=2)


def test_names_that_other_trainers_use_lead_to_settings():
    own = {normalize_name(name) for name in setting_fields()} | SHORT_NAMES.keys()
    assert not own & (NAMES_ELSEWHERE.keys() | REMEDIES_ELSEWHERE.keys())
    assert not NAMES_ELSEWHERE.keys() & REMEDIES_ELSEWHERE.keys()
    listed = [name for others in (*_NAMES.values(), *_REMEDIES.values()) for name in others.split()]
    assert len(listed) == len(set(listed)) == len(NAMES_ELSEWHERE) + len(REMEDIES_ELSEWHERE)
    for elsewhere, name in NAMES_ELSEWHERE.items():
        assert name in setting_fields()
        assert elsewhere == normalize_name(elsewhere)
        with pytest.raises(errors.UsageError, match=f"did you mean '{name}'"):
            canonical_name(elsewhere)
    for elsewhere, remedy in REMEDIES_ELSEWHERE.items():
        assert elsewhere == normalize_name(elsewhere)
        if remedy.startswith(("use --count", "use --dry-run")):  # options of a command, not settings
            continue
        assert settings_in(remedy) <= setting_fields().keys(), remedy
        for command_name in re.findall(r"harness ([a-z-]+) ", remedy):
            assert command_name in cli.commands or "torchrun" in remedy
        with pytest.raises(errors.UsageError, match=re.escape(remedy)):
            canonical_name(elsewhere)


# What the training scripts of timm 1.0, Lightning 2, transformers 5, fastai 2 and Ultralytics 8 call these options.
USUAL = """
    --opt=adamw:optimizer --weight-decay=0:weight_decay --min-lr=0:lr_min --warmup-epochs=1:warmup_epochs --img-size=32:image_size
    --sched=cosine:schedule --arch=resnet18:model --validation-batch-size=9:eval_batch_size --model-ema-decay=0.9:ema
    --max_epochs=3:epochs --gradient_clip_val=1:clip_grad --accelerator=cpu:device --default_root_dir=x:output
    --log_every_n_steps=5:log_every --ckpt_path=x:resume --learning_rate=1:lr_max --num_train_epochs=1:epochs
    --per_device_eval_batch_size=9:eval_batch_size --lr_scheduler_type=cosine:schedule --warmup_steps=5:warmup_steps
    --label_smoothing_factor=0:label_smoothing --dataloader_num_workers=1:workers --report_to=wandb:tracker
    --save_steps=5:checkpoint_every --output_dir=x:output --fp16:precision --bf16=True:precision --bs=9:batch_size --arch=x:model
    --lr0=1:lr_max --lrf=1:lr_min_ratio --imgsz=32:image_size --patience=3:early_stop --batch=9:batch_size --amp:precision
    --aa=rand-m9:auto_augment --reprob=0.2:erasing --remode=pixel:erasing_mode --recount=2:erasing_count --color-jitter=0.4:color_jitter
    --color-jitter-prob=1:color_jitter_prob --grayscale-prob=0:grayscale --gaussian-blur-prob=0:blur --hflip=0.5:flip --vflip=0.5:vflip
    --scale=0.1:crop_scale --ratio=0.7:crop_ratio --aug-repeats=3:aug_repeats --ra-reps=3:aug_repeats --no-aug=1:augment
    --flipud=0.5:vflip --fliplr=0.5:flip --hsv_h=0.1:color_jitter --degrees=10:auto_augment --erasing=0.4:erasing --scale=0.5:crop_scale
    --optimizer=sgd:optimizer --seed=1:seed --num-classes=3:classes --wd=0:weight_decay --lr=1:lr_max --workers=1:workers
"""


@pytest.mark.parametrize("pair", sorted(set(USUAL.split())))
def test_an_option_of_another_trainer_is_understood_or_names_the_setting(pair):
    option, _, setting = pair.rpartition(":")
    name = option[2:].partition("=")[0]
    try:
        assert canonical_name(name) == setting
    except errors.UsageError as error:
        text = str(error)
        assert f"'{setting}'" in text or f"--{setting.replace('_', '-')}" in text
        assert "\n" not in text
        with pytest.raises(errors.UsageError, match=re.escape(text)):
            harness.make_config({name: "1"})
        with pytest.raises(errors.UsageError, match=re.escape(text)):
            sweep = {"method": "grid", "command": list(START_RUN), "parameters": {name: {"values": [1, 2]}}}
            parse_sweep(sweep, "x", {})
        with pytest.raises(errors.UsageError, match=re.escape(text)):
            Config(**{name: "1"})


def test_a_recipe_with_a_name_of_another_trainer_says_what_to_write(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: digits\ngradient_accumulation_steps: 2\n")
    with pytest.raises(errors.UsageError, match=r"mine\.yaml: .*use --grad-accumulation"):
        harness.make_config({"recipe": str(file)})


def test_a_traceback_is_shown_under_debug_only(tmp_path):
    arguments = ["run", "--epochs", "many"]
    assert "Traceback" not in command(*arguments, cwd=tmp_path, check=2).stderr
    for place in ([*arguments, "--debug"], ["--debug", *arguments]):
        stderr = command(*place, cwd=tmp_path, check=2).stderr
        assert "Traceback" in stderr
        assert stderr.rstrip().splitlines()[-1] == "error: epochs='many': need a number, or auto"


def test_every_exit_status_is_documented():
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.HarnessError)]
    statuses = {one.exit_code for one in classes} | {errors.CHECK_FAILED}
    statuses |= {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    assert statuses <= EXIT_STATUSES.keys() <= statuses | {0, 1, 2}
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    for status, meaning in EXIT_STATUSES.items():
        assert f"{status} {meaning}" in " ".join(EPILOG.split())
        assert f"| {status} | {meaning} |" in page


def test_the_result_is_on_stdout_and_the_progress_on_stderr(finished):
    done, _ = finished
    assert "test accuracy" in done.stdout and "epoch 1" not in done.stdout.replace("epoch 1,", "")
    assert "epoch" in done.stderr and "test accuracy" not in done.stderr


def test_the_version_is_that_of_the_distribution(tmp_path):
    assert re.fullmatch(r"vision-harness \d+\.\d+\.\d+\n", command("--version", cwd=tmp_path, check=0).stdout)


def test_the_program_exits_without_a_last_collection_of_all_objects(monkeypatch, capsys):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setattr(sys, "argv", ["harness", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert frozen and "harness" in capsys.readouterr().out


def test_the_help_names_each_default_that_is_another_one_for_data_of_ones_own():
    usual, own = Config(), make_config({"data": "folder", "data_dir": "pictures"})
    for name in setting_fields():
        here, there = getattr(usual, name), AUTO if name in own.undecided else getattr(own, name)
        if name not in ("recipe", "data", "data_dir"):
            assert (f"; your own images: {there}]" in setting_help(name)) == (here != there), name
    assert setting_help("epochs").endswith("[24; your own images: auto]")


def accepts(name, values):
    """Whether a setting can be read from one of these texts."""
    for value in values:
        with contextlib.suppress(errors.UsageError):
            coerce(name, value)
            return True
    return False


def test_every_option_takes_a_value_of_the_form_that_its_help_shows():
    forms = {
        "BOOL": ["true"], "N": ["3"], "NUMBER": ["0.5", "1"], "NUMBER|find": ["find"], "NUMBER,...": ["0.5,1", "0.4,0.5,0.6"],
        "EPOCH,...": ["2,3.5"], "FOLDER": ["a"], "NAME,...": ["a,b", "wandb,tensorboard"], "COLUMN,...": ["a,b"],
        "PATTERN,...": ["a*,b"], "KEY=VALUE,...": ["a=1,b=2"], "LOW,HIGH": ["0,1"], "STEP:EPOCHS,...": ["10:2"],
        "balanced|NUMBER,...|NAME=NUMBER,...": ["cat=2"], "TEXT": ["a", "none", "auto"], "FILE": [],
    }  # fmt: skip
    shown = {option.name: option.metavar for option in cli.commands["run"].params if option.name in setting_fields()}
    assert shown.keys() == setting_fields().keys()
    for name, form in shown.items():  # a file is read
        assert form == "FILE" or accepts(name, setting_fields()[name].metadata["choices"] or forms[form]), (name, form)
    kinds = {kind: {name for name, form in shown.items() if form == kind} for kind in forms}
    assert kinds["FOLDER"] == {"data_dir", "image_root", "output"} and kinds["FILE"] == {"augment_pipeline"}
    assert kinds["NAME,..."] == {"metrics", "plugin", "tags", "tracker", "transforms"}
    assert all(kinds.values())


def test_the_option_of_a_list_may_be_given_several_times():
    given = [
        "--transforms",
        "a",
        "--transforms",
        "b,c",
        "--label-columns",
        "red",
        "--label-columns",
        "blue",
        "--tags",
        "x",
    ]
    values = parsed("run", *given)
    assert (values["transforms"], values["label_columns"], values["tags"]) == (("a", "b,c"), ("red", "blue"), ("x",))
    collected = []
    main = setting_options(lambda settings, **_: collected.append(settings))
    main(**{name: values.get(name) for name in values})
    assert collected[0]["transforms"] == ("a", "b", "c") and collected[0]["label_columns"] == ("red", "blue")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["completion", "bash"]])
def test_a_reader_of_the_output_that_has_ended_is_no_failure(arguments, tmp_path):
    """As with `harness models | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        line = [sys.executable, "-m", "harness", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "RuntimeError: a pipe has broken: "),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_bug_and_a_pipe_that_breaks_elsewhere_end_in_a_traceback_and_1(error, text, monkeypatch, capsys):
    def fail(**options):
        raise error

    monkeypatch.setattr(cli.commands["completion"], "callback", fail)
    monkeypatch.setattr(sys, "argv", ["harness", "completion"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    *lines, last = shown.err.splitlines()
    assert (stop.value.code, shown.out, last) == (1, "", "error: this is a bug in harness, not in your command")
    assert lines[0].startswith("Traceback") and lines[-1].startswith(text)


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (["runs"], {"RANK": "0", "WORLD_SIZE": "2"}, "harness runs runs in one process; start it without torchrun"),
        (
            ["sweep", "x.yaml", "--storage", "postgresql+psycopg://me@host/db"],
            {},
            "--storage postgresql+psycopg://... needs an extra: pip install 'vision-harness[postgres]'",
        ),
    ],
)
def test_what_the_process_or_the_installation_lacks_is_one_line(arguments, variables, text, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("harness.cli.sweep.find_spec", lambda name: None)  # as where psycopg is not installed
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {text}\n")


def test_predictions_on_a_terminal_are_printed_without_what_a_terminal_acts_on(capsys):
    line = "é,\x1b[2Jcat\u202e,0.5\n".encode()
    assert TerminalStream().write(line) == len(line)
    assert capsys.readouterr().out == "é, [2Jcat ,0.5\n"


def test_the_signals_that_end_the_program_while_it_is_imported_are_those_that_stop_a_run():
    from harness import __main__
    from harness.utils.signals import SIGNALS

    assert __main__.SIGNALS == SIGNALS == ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
