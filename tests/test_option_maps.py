"""The pages for users of other trainers name what there is, completely, and their examples train the same with both."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import Mixup
from timm.data.transforms_factory import create_transform
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torchvision.transforms import Compose

from harness.cli.commands import CONTEXT
from harness.cli.main import cli
from harness.config.other_names import NAMES_ELSEWHERE, REMEDIES_ELSEWHERE, settings_in
from harness.config.recipe import make_config
from harness.config.settings import SHORT_NAMES, normalize_name, setting_fields
from harness.data.augment import make_augment
from harness.data.image_transforms import seeded_rng, timm_compose
from harness.data.mixup import make_mixup
from harness.data.preprocess import Preprocess, make_preprocess
from harness.data.registry import load_dataset
from harness.models.factory import create_model
from harness.training.ema import EMAModel
from harness.training.losses import make_loss
from harness.training.optimizer import make_optimizer
from harness.training.schedule import make_schedule
from harness.utils.seeding import seed_for

HOWTO = Path(__file__).parents[1] / "docs/howto"
PAGES = ("timm", "lightning", "fastai", "ultralytics", "huggingface")
TIMM_PAGE = (HOWTO / "from-timm.md").read_text(encoding="utf-8")
STEPS_PER_EPOCH = 7
UNUSED = {"crop_padding", "peak_epoch"}  # by a resized crop, and by a schedule with a warm-up
# Every option of timm's train.py, version 1.0.29.dev0, commit aa4b585 of 8 August 2026.
TIMM_NAMES = """
    config data data-dir dataset train-split val-split train-num-samples val-num-samples dataset-download class-map
    input-img-mode input-key target-key dataset-trust-remote-code model pretrained pretrained-path initial-checkpoint resume
    no-resume-opt num-classes gp img-size in-chans input-size crop-pct mean std interpolation batch-size
    validation-batch-size channels-last fuser grad-accum-steps grad-checkpointing fast-norm model-kwargs head-init-scale
    head-init-bias torchcompile-mode torchscript torchcompile device amp amp-dtype model-dtype no-ddp-bb synchronize-step
    local_rank device-modules opt opt-eps opt-betas momentum weight-decay clip-grad clip-mode layer-decay
    layer-decay-min-scale layer-decay-no-opt-scale opt-kwargs sched sched-on-updates lr lr-base lr-base-size lr-base-scale
    lr-noise lr-noise-pct lr-noise-std lr-cycle-mul lr-cycle-decay lr-cycle-limit lr-k-decay warmup-lr min-lr epochs
    epoch-repeats start-epoch decay-milestones decay-epochs warmup-epochs warmup-prefix cooldown-epochs patience-epochs
    decay-rate no-aug train-crop-mode scale ratio hflip vflip color-jitter color-jitter-prob grayscale-prob
    gaussian-blur-prob aa aug-repeats aug-splits jsd-loss bce-loss bce-sum bce-target-thresh bce-pos-weight reprob remode
    recount resplit mixup cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode mixup-off-epoch smoothing
    train-interpolation drop drop-connect drop-path drop-block bn-momentum bn-eps sync-bn dist-bn split-bn model-ema
    model-ema-force-cpu model-ema-decay model-ema-warmup seed worker-seeding log-interval val-interval recovery-interval
    checkpoint-hist workers save-images pin-mem no-prefetcher output experiment eval-metric tta use-multi-epochs-loader
    log-wandb wandb-project wandb-tags wandb-resume-id train-img-sizes train-batch-sizes train-size-probs
    train-size-schedule train-size-schedule-spread train-size-random-mix train-batches-per-epoch variable-batch-loss-scale
    naflex-loader naflex-train-seq-lens naflex-max-seq-len naflex-patch-sizes naflex-patch-size-probs naflex-loss-scale
    naflex-patchify-channels-first kd-model-name kd-distill-type kd-loss-type distill-loss-weight task-loss-weight
    kd-temperature kd-student-feature-dim kd-teacher-feature-dim kd-token-distill-type
"""
TIMM = TIMM_NAMES.split()


def rows(text):
    """The cells of each row of the tables of a page."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def options_in(text):
    """The settings whose options a text names."""
    return {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*)", text)}


def options_of_timm():
    """Option of timm -> (what it is here, kind, remark)."""
    found = {}
    for first, *cells in rows(TIMM_PAGE):
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in found
            found[name] = ("", "missing", cells[0]) if len(cells) == 1 else tuple(cells)
    return found


def example(page, start):
    """The words of the command in a page's blocks of code that begins so."""
    text = (HOWTO / f"from-{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return shlex.split(line.removeprefix(start))


def our_config(page):
    """The settings of our command on a page."""
    context = cli.commands["run"].make_context("run", example(page, "harness run "), **CONTEXT)
    given = {name: value for name, value in context.params.items() if name in setting_fields()}
    given = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in given.items() if value}
    config = make_config(given)
    assert config.undecided <= UNUSED  # nothing that changes the training is left to the data
    return config.replace(**{name: setting_fields()[name].default for name in config.undecided})


def rates_of(config):
    """The learning rate of every update."""
    schedule = make_schedule(config, STEPS_PER_EPOCH)
    return [schedule.lr(step) for step in range(schedule.steps)]


@pytest.fixture(scope="module")
def theirs():
    """The options of timm's command on its page."""
    words, values = example("timm", "python train.py "), {}
    for word in words:
        if word.startswith("-"):
            name = {"-b": "batch-size"}.get(word, word.lstrip("-"))
            values[name] = True
        else:
            values[name] = word
    assert values.keys() <= set(TIMM)
    return values


@pytest.fixture(scope="module")
def ours():
    return our_config("timm")


def test_the_page_for_users_of_timm_has_every_option_of_its_script_once_and_no_other():
    assert len(TIMM) == len(set(TIMM)) == 173
    assert options_of_timm().keys() == set(TIMM)


def test_the_counts_at_the_top_of_the_page_are_those_of_its_rows():
    kinds = [kind for _, kind, _ in options_of_timm().values()]
    equal, other, missing = (kinds.count(kind) for kind in ("equal", "other way", "missing"))
    assert equal + other + missing == len(kinds)
    sentence = f"Of its {len(kinds)} options {equal} have an equal here, {other} are had in another way, and {missing} are missing."
    assert sentence in TIMM_PAGE


def test_every_missing_option_has_its_reason_and_every_other_row_says_what_there_is():
    for name, (here, kind, remark) in options_of_timm().items():
        assert remark if kind == "missing" else here, name
        if kind == "equal":
            assert options_in(here) & setting_fields().keys(), name


@pytest.mark.parametrize("name", TIMM)
def test_a_name_of_timms_is_a_setting_or_leads_to_that_of_its_row(name):
    here, kind, remark = options_of_timm()[name]
    key, named = normalize_name(name), options_in(here)
    known = {normalize_name(setting): setting for setting in setting_fields()} | SHORT_NAMES
    if key in known:
        assert known[key] in named | options_in(remark)
    elif key in NAMES_ELSEWHERE:
        assert kind != "missing" and NAMES_ELSEWHERE[key] in named
    else:
        remedy = REMEDIES_ELSEWHERE[key]  # every other name says what to write, or that there is nothing
        assert settings_in(remedy) <= named | options_in(remark) | {"data_dir", "batch_size", "loss"}
        assert ("from-timm.md" in remedy) <= (kind == "missing")


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_the_tables_of_a_page_is_one(page):
    options = {option for command in cli.commands.values() for part in command.params for option in part.opts}
    known = {normalize_name(option) for option in options} | {"standalone", "nprocpernode"}  # of torchrun
    table = rows((HOWTO / f"from-{page}.md").read_text(encoding="utf-8"))
    assert table
    for first, *cells in table:
        assert "--" not in first
        assert {normalize_name(name) for name in options_in(" ".join(cells))} <= known, first


@pytest.mark.parametrize("page", PAGES)
def test_the_example_of_a_page_leaves_nothing_to_the_data_that_changes_the_training(page):
    config = our_config(page)
    assert config.crop == "resized" and (
        config.warmup_epochs or config.warmup_steps or config.peak_epoch == 0 or page == "fastai"
    )


def test_the_example_has_the_learning_rate_of_timm_in_every_update(theirs, ours):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=float(theirs["lr"]))
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched=theirs["sched"],
        num_epochs=int(theirs["epochs"]),
        min_lr=float(theirs["min-lr"]),
        warmup_lr=float(theirs["warmup-lr"]),
        warmup_epochs=int(theirs["warmup-epochs"]),
        warmup_prefix=theirs["warmup-prefix"],
        step_on_epochs=not theirs["sched-on-updates"],
        updates_per_epoch=STEPS_PER_EPOCH,
    )
    rates = []
    for step in range(epochs * STEPS_PER_EPOCH):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    assert epochs == ours.epochs
    np.testing.assert_allclose(rates_of(ours), rates, rtol=1e-9)


def test_the_example_has_the_optimizer_of_timm(theirs, ours):
    model = timm.create_model("resnet10t", num_classes=3)
    arguments = {name.replace("-", "_"): float(theirs[name]) for name in ("lr", "weight-decay", "momentum")}
    made = [create_optimizer_v2(model, theirs["opt"], **arguments), make_optimizer(ours, model)]
    decays = [
        {id(parameter): group["weight_decay"] for group in each.param_groups for parameter in group["params"]}
        for each in made
    ]
    assert decays[0] == decays[1] and set(decays[0].values()) == {0.0, 1e-4}
    for name in ("lr", "momentum", "nesterov", "dampening"):
        assert [{group[name] for group in each.param_groups} for each in made] == [{made[0].defaults[name]}] * 2
    assert isinstance(made[1], type(made[0]))


def test_the_example_has_the_transforms_of_timm(theirs, ours):
    cfg = timm.get_pretrained_cfg(ours.model)
    preprocess = Preprocess(ours.image_size, cfg.mean, cfg.std, cfg.crop_pct, cfg.interpolation)
    assert ours.image_size == int(theirs["img-size"]) == cfg.input_size[-1]
    expected = create_transform(
        int(theirs["img-size"]), is_training=True, use_prefetcher=True, auto_augment=theirs["aa"],
        interpolation=theirs["train-interpolation"], mean=cfg.mean, std=cfg.std,
    ).transforms  # fmt: skip
    base, rest = timm_compose(make_augment(ours, preprocess), preprocess)
    transforms = [*base.transforms, *rest.transforms]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    pixels = []
    for steps in (transforms, expected[:-1]):  # the last one of timm's makes a tensor
        with seeded_rng(3, numpy=True):
            pixels.append([np.asarray(Compose(steps)(image)) for _ in range(4)])
    np.testing.assert_array_equal(*pixels)
    erasing = make_augment(ours, preprocess).erasing
    assert erasing is not None and (erasing.probability, erasing.mode, erasing.count) == (
        float(theirs["reprob"]),
        "pixel",
        1,
    )


def test_the_example_has_the_targets_and_the_loss_of_timm(theirs, ours):
    mixup = Mixup(
        float(theirs["mixup"]), float(theirs["cutmix"]), label_smoothing=float(theirs["smoothing"]), num_classes=3
    )
    loss = BinaryCrossEntropy(target_threshold=float(theirs["bce-target-thresh"]))
    torch.manual_seed(0)
    images, labels, logits = torch.randn(8, 3, 16, 16), torch.randint(3, (8,)), torch.randn(8, 3)
    our_loss, mix = make_loss(ours, logits.device, is_smoothed=True), make_mixup(ours, 3)
    assert mix is not None
    before = np.random.get_state()
    try:
        for step in range(6):
            mixed, targets = mix(images, labels, step)
            np.random.seed(seed_for(ours.seed, "mix", step) % 2**32)
            expected, expected_targets = mixup(images.clone(), labels)
            torch.testing.assert_close((mixed, targets), (expected, expected_targets))
            torch.testing.assert_close(our_loss(logits, targets), loss(logits, expected_targets))
    finally:
        np.random.set_state(before)


def test_the_example_has_the_decays_of_timms_moving_average(theirs, ours):
    model = torch.nn.Linear(1, 1)
    average = ModelEmaV3(model, decay=float(theirs["model-ema-decay"]), use_warmup=theirs["model-ema-warmup"])
    our_average = EMAModel(model, ours.ema, ours.ema_warmup)
    for updates_done in (1, 2, 10, 1000, 100_000):
        assert our_average.decay_after(updates_done) == pytest.approx(average.get_decay(updates_done + 1))
    assert ours.clip_grad == float(theirs["clip-grad"]) and ours.precision == "bf16"


def test_model_args_change_the_normalisation_and_the_crop_of_a_timm_model():
    overlay = "{'crop_pct': 0.8, 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'interpolation': 'bilinear'}"
    settings = {"model": "resnet10t", "image_size": 48, "model_args": f"pretrained_cfg_overlay={overlay}"}
    config = make_config({"recipe": "digits", **settings})
    preprocess = make_preprocess(config, create_model(config, 10), load_dataset(config))
    assert preprocess == Preprocess(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear")


def test_model_args_reach_the_batch_normalisation_the_pooling_and_the_dropped_blocks_of_a_timm_model():
    settings = {
        "recipe": "digits",
        "model": "mobilenetv3_small_050",
        "model_args": {"bn_momentum": 0.05, "bn_eps": 0.01},
    }
    layer = create_model(make_config(settings), 10).bn1
    assert (layer.momentum, layer.eps) == (0.05, 0.01)
    settings |= {"model": "resnet10t", "model_args": {"global_pool": "max", "drop_block_rate": 0.1}}
    model = create_model(make_config(settings), 10)
    assert model.global_pool.pool_type == "max"
    assert any(type(module).__name__ == "DropBlock2d" for module in model.modules())


def test_the_example_for_lightning_has_the_learning_rate_of_torchs_cosine_in_every_update():
    config = our_config("lightning")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    steps = config.epochs * STEPS_PER_EPOCH
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates_of(config), rates, rtol=1e-9)


def test_the_example_for_hugging_face_has_the_linear_schedule_of_its_trainer_in_every_update():
    config = our_config("huggingface")
    steps, warmup, highest = config.epochs * STEPS_PER_EPOCH, 10, 5e-4
    assert config.warmup_steps == warmup
    step = np.arange(steps)
    expected = highest * np.where(step < warmup, step / warmup, (steps - step) / (steps - warmup))
    np.testing.assert_allclose(rates_of(config), expected, rtol=1e-9, atol=1e-15)
