"""Views of training images are those of timm's AugMixDataset, and the JSD loss of a run is timm's on its own batches."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import AugMixDataset, create_transform
from timm.data.loader import fast_collate
from timm.data.random_erasing import RandomErasing
from timm.loss import JsdCrossEntropy

from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.device_loader import epoch_order
from harness.data.image_transforms import TimmTransform, seeded_rng
from harness.data.own_transforms import register_transform
from harness.data.views import flatten_views, with_memory_format
from harness.reporting.augmented_images import draw_augmented
from harness.training.cuda_graph import GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, fit
from harness.training.losses import make_loss, uniform_loss
from harness.utils import registry
from harness.utils.errors import UsageError
from harness.utils.seeding import seed_for
from tests.data.test_image_transforms import COUNT, MEAN, PIXELS, PREPROCESS, Rank, equal, loaders, seed_all, to_list
from tests.support.training import CPU, assert_equal, net, schedule, weights

JSD = {"loss": "jsd", "aug_splits": 3}
AUGMIX = {**JSD, "auto_augment": "augmix-m5-w2", "cutout": 0}


class OneImage(torch.utils.data.Dataset):
    """A data set of timm's kind, of one image."""

    def __init__(self, image, transform):
        self.image, self.transform = image, transform

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.transform(self.image), 0


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("policy", ["augmix-m5-w2", "rand-m9-mstd0.5-inc1"])
def test_views_are_those_of_timms_augmix_dataset_under_the_same_random_state(policy, views):
    config = Config(**{**AUGMIX, "aug_splits": views, "auto_augment": policy}, crop="resized", vflip=0.3)
    options = {
        "color_jitter": None,
        "interpolation": "bicubic",
        "mean": MEAN,
        "normalize": False,
        "vflip": config.vflip,
    }
    base, policy_part, to_array = create_transform(
        32, is_training=True, auto_augment=policy, separate=True, use_prefetcher=True, **options
    )
    ours = TimmTransform(make_augment(config, PREPROCESS), PREPROCESS)
    differing = 0
    for index in range(8):
        image = Image.fromarray(PIXELS[index]).resize((50, 40))
        theirs = AugMixDataset(OneImage(image, (base, policy_part, to_array)), views)
        with seeded_rng(0, numpy=True):
            seed_all(index)
            expected = np.stack([np.asarray(view) for view in theirs[0][0]])
            result = ours(image, index)
        np.testing.assert_array_equal(result, expected)
        differing += len({view.tobytes() for view in result})
    assert differing > 8 * views / 2  # RandAugment leaves some as they are


def test_the_batch_of_the_network_is_that_of_timms_collation():
    images, labels = next(loaders(**AUGMIX).train.epoch(0))
    assert images.shape == (8, 3, 3, 32, 32) and labels.shape == (8,)
    transform = TimmTransform(make_augment(Config(**AUGMIX), PREPROCESS), PREPROCESS)
    samples = []
    with seeded_rng(0, numpy=True):
        for index in epoch_order(COUNT, 0, 0)[:8].tolist():
            views = transform(Image.fromarray(PIXELS[index]), seed_for(0, "augment", 0, index))
            samples.append((tuple(views), index % 10))
    pixels, targets = fast_collate(samples)
    assert torch.equal(flatten_views(images), PREPROCESS.normalise(pixels))
    assert torch.equal(labels.repeat(3), targets)


def test_the_first_view_is_the_image_without_a_policy_erasing_cutout_and_own_transforms(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register_transform(lambda image, generator: 255 - image, name="inverted")
    rich = {"color_jitter": 0.5, "blur": 1, "erasing": 1, "cutout": 8, "transforms": ("inverted",)}
    views = to_list(loaders(**JSD, **rich).train.epoch(1))
    plain = to_list(loaders(loader="timm", cutout=0).train.epoch(1))
    assert equal([(images[:, 0].contiguous(), labels) for images, labels in views], plain)
    with_cutout = torch.cat([images for images, _ in loaders(**JSD, **{**rich, "erasing": 0}).train.epoch(1)])
    zeros = (with_cutout == 0).all(2).sum((2, 3))
    assert (zeros[:, 1:] == 64).all() and (zeros[:, 0] == 0).all()


def test_erasing_is_timms_with_its_splits():
    settings = {**AUGMIX, "crop": "none", "flip": False}
    plain, erased = (next(loaders(**settings, **more).train.epoch(0))[0] for more in ({}, {"erasing": 0.8}))
    theirs = RandomErasing(0.8, 0.02, 1 / 3, mode="pixel", num_splits=3, device="cpu")
    with seeded_rng(seed_for(0, "erase", 0, 0)):
        expected = torch.stack([theirs(views.clone()) for views in plain])  # of one image: all but its first
    torch.testing.assert_close(erased, expected, atol=0, rtol=0)
    assert torch.equal(erased[:, 0], plain[:, 0]) and not torch.equal(erased, plain)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_views_reach_the_network_without_a_copy_in_its_memory_format(memory_format):
    images = torch.randn(4, 3, 3, 8, 8)
    laid_out = with_memory_format(images, memory_format)
    flat = flatten_views(laid_out)
    assert torch.equal(laid_out, images) and flat.data_ptr() == laid_out.data_ptr()
    assert flat.is_contiguous(memory_format=memory_format)
    assert torch.equal(flat[4 * 2 + 1], images[1, 2])


def test_batches_are_a_function_of_seed_epoch_and_batch_for_any_number_of_processes():
    settings = {**AUGMIX, "erasing": 0.5, "alternating_flip": True}
    train = loaders(**settings).train
    first = to_list(train.epoch(1))
    assert equal(to_list(train.epoch(1, start=3)), first[3:])
    parts = [to_list(loaders(Rank(rank), **settings).train.epoch(1)) for rank in range(2)]
    assert equal([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)], first)


@pytest.mark.slow
def test_two_workers_make_the_views_of_none():
    settings = {**AUGMIX, "erasing": 0.5}
    assert equal(*(to_list(loaders(**settings, workers=workers).train.epoch(0)) for workers in (0, 2)))


class Views:
    """Batches of three random views of each image."""

    def __init__(self, sizes=(8, 8, 5)):
        self.sizes, self.steps, self.num_images = sizes, len(sizes), sum(sizes)

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(epoch)
        for index, size in enumerate(self.sizes):
            images = torch.randn(size, 3, 3, 8, 8, generator=generator)
            labels = torch.randint(0, 3, (size,), generator=generator)
            if index >= start:
                yield images, labels


def learner_of(model, **settings):
    config = Config(precision="fp32", channels_last=False, lr_min=0.01, lr_max=0.1, **JSD, **settings)
    return make_learner(config, model, CPU, None)


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 12), (0.1, 12), (0.1, 3)])
def test_an_update_is_that_of_a_reference_loop_with_timms_jsd_cross_entropy(smoothing, alpha):
    model = net(dropout=0.0)
    other = copy.deepcopy(model)
    one = learner_of(model, label_smoothing=smoothing, loss_args={"alpha": alpha})
    criterion = JsdCrossEntropy(num_splits=3, alpha=alpha, smoothing=smoothing)
    optimizer = torch.optim.SGD(other.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for step, (images, labels) in enumerate(Views().epoch(0)):
        result = one.train_step(images, labels, step, 0.1, 0.9)
        logits = other(torch.cat([images[:, view] for view in range(3)]))
        loss = criterion(logits, labels.repeat(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(result.loss, loss.detach())
        assert step or torch.equal(result.loss, loss.detach())
        assert int(result.correct) == int((logits[: len(labels)].argmax(1) == labels).sum())
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_formula_of_the_augmix_paper():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(12, 5, generator=generator), torch.randint(0, 5, (4,), generator=generator)
    p = logits.double().softmax(1).numpy().reshape(3, 4, 5)
    mixture = p.mean(0)
    divergence = np.mean([(each * np.log(each / mixture)).sum(1).mean() for each in p])
    expected = -np.log(p[0][np.arange(4), labels]).mean() + 12 * divergence
    assert float(make_loss(Config(**JSD), CPU)(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_micro_batches_of_views_have_the_gradients_of_the_whole_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))  # without batch normalisation
    other = copy.deepcopy(model)
    images, labels = next(Views((7,)).epoch(0))
    whole = learner_of(model).train_step(images, labels, 0, 0.1, 0.9)
    parts = learner_of(other, grad_accumulation=3).train_step(images, labels, 0, 0.1, 0.9)
    torch.testing.assert_close(whole.loss, parts.loss)
    torch.testing.assert_close(model[1].weight, other[1].weight)


def test_a_captured_update_and_a_resumed_run_of_views_are_bit_identical_to_the_plain_one():
    model = net()
    plain, captured, resumed = (learner_of(copy.deepcopy(model)) for _ in range(3))
    captured.graph = GraphedStep(captured.update, captured.optimizer, CPU)
    for one in (plain, captured):
        list(fit(one, Views(), schedule(3), epochs=3))
    assert_equal(weights(plain.model), weights(captured.model))
    state = TrainerState()
    list(fit(resumed, Views(), schedule(3), epochs=1, state=state))
    again, restored = learner_of(net(seed=5)), TrainerState()
    again.load_state_dict(copy.deepcopy(resumed.state_dict()))
    restored.load_state_dict(copy.deepcopy(state.state_dict()), CPU)
    list(fit(again, Views(), schedule(3), epochs=3, state=restored))
    assert_equal(weights(plain.model), weights(again.model))


def test_equal_probabilities_have_the_loss_of_cross_entropy():
    assert uniform_loss(Config(**JSD), 10) == math.log(10)
    assert float(make_loss(Config(**JSD), CPU)(torch.zeros(9, 10), torch.arange(3))) == pytest.approx(math.log(10))


def test_the_preview_has_the_views_of_the_first_images_that_training_has_and_the_grid_names_them(tmp_path):
    config, made = Config(**AUGMIX, erasing=0.5, gallery=7, workers=0, batch_size=8), loaders(**AUGMIX, erasing=0.5)
    images, labels = next(made.train.epoch(0))
    shown, shown_labels = made.train.preview(4)
    assert torch.equal(shown, images[:4]) and torch.equal(shown_labels, labels[:4])
    drawn = draw_augmented(made.train, None, config, PREPROCESS, "abcdefghij", tmp_path / "a.png")
    assert drawn.caption.endswith("3 views of each image, the first with crop and flip alone.")
    plain = draw_augmented(made.train, None, config.replace(gallery=2), PREPROCESS, "abcdefghij", tmp_path / "b.png")
    assert drawn.pixels.shape[0] > plain.pixels.shape[0]  # 7 in two rows, 2 in one


def test_evaluation_is_unchanged():
    views, plain = loaders(**AUGMIX).test, loaders(loader="timm").test
    assert equal(to_list(views), to_list(plain))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "jsd"}, "aug_splits=0 makes none; set --aug-splits 3"),
        ({"aug_splits": 3}, "which loss=jsd compares, and loss=cross_entropy; set --loss jsd, or leave"),
        ({"loss": "jsd", "aug_splits": 1}, "aug_splits=1: one view is no comparison"),
        ({**AUGMIX, "mixup": 0.2}, "mixup=0.2 mixes them; set --mixup 0"),
        ({**AUGMIX, "cutmix": 1}, "cutmix=1 mixes them; set --cutmix 0"),
        ({**AUGMIX, "class_weights": "balanced"}, "loss=jsd takes no weights of the classes"),
        ({**JSD, "augment": "albumentations"}, "needs timm's transforms, and augment=albumentations"),
        ({**AUGMIX, "augment": "none"}, "needs timm's transforms, and augment=none"),
        ({**JSD, "cutout": 0}, "nothing differs between the views of an image; set --auto-augment"),
        ({**AUGMIX, "loss_args": {"alpha": -1}}, "loss_args=alpha=-1: need a number from 0 to 1000"),
        ({**AUGMIX, "loss_args": {"gamma": 1}}, "loss_args=gamma=1: loss=jsd has only alpha; set --loss focal"),
    ],
)
def test_what_jsd_and_its_views_cannot_be_combined_with_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as refused:
        Config(**settings)
    assert "\n" not in str(refused.value)


def test_views_need_the_loader_of_single_images():
    assert loaders(**AUGMIX).kind == "timm"
    with pytest.raises(
        UsageError, match=r"loader=resident is not possible: auto_augment=augmix-m5-w2 transforms single"
    ):
        loaders(**AUGMIX, loader="resident")
    with pytest.raises(UsageError, match=r"loader=resident is not possible: aug_splits=3 transforms single images"):
        loaders(**JSD, loader="resident")
