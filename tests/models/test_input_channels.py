"""Networks of other numbers of channels: their first layer from weights of others, against timm's, and whitened."""

import numpy as np
import pytest
import timm
import torch
from timm.models import adapt_input_conv, save_for_hf
from torch import nn
from torch.nn import functional as F

import harness.models.cifar_resnet
import harness.models.speedrun_cnn  # noqa: F401 - registers its model
from harness.config.settings import Config
from harness.data.dataset import Dataset, in_memory
from harness.data.preprocess import Preprocess, make_preprocess, preprocess_notes
from harness.evaluation.gradcam import default_layer
from harness.evaluation.initial_weights import InitialWeights, give_initial_weights
from harness.models import factory
from harness.models.pretrained import adapt_input
from harness.models.whitening import whiten_first_layer
from harness.utils.errors import CheckpointError, UsageError

MODELS = {
    "custom_resnet": {"width": 4},
    "resnet18_cifar": {"channels": (4, 4, 4, 4)},
    "test_resnet": {},
    "test_vit": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_nfnet": {},
}


def data_of(channels, count=8, mean=None):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, channels), dtype=np.uint8)
    train = in_memory("train", pixels, np.arange(count) % 2, [str(index) for index in range(count)])
    mean = mean or tuple(0.1 + 0.1 * band for band in range(channels))
    return Dataset("noise", ("a", "b"), train, None, None, mean, (0.3,) * channels, "")


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """The name of a model, its arguments, and a folder of timm with its weights of 3 channels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    model = timm.create_model(request.param, num_classes=2, **MODELS[request.param])
    save_for_hf(model, str(folder), model_config={"num_classes": 2}, safe_serialization=True)
    return request.param, MODELS[request.param], folder


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_init_and_pretrained_give_the_weights_that_timm_gives(saved, channels):
    name, arguments, folder = saved
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=channels).state_dict()
    source = timm.create_model(name, num_classes=2, **arguments)
    source.load_state_dict(timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict())
    config = Config(model=name, model_args=arguments, in_chans=channels)
    model = factory.create_model(config, 2)
    note = give_initial_weights(model, InitialWeights("w", source.state_dict()), ("a", "b"), name, channels)
    assert f" adapted from 3 to {channels} channel" in note
    pretrained = factory.create_model(Config(model=f"local-dir:{folder}", pretrained=True, in_chans=channels), 2)
    for each in (model.state_dict(), pretrained.state_dict()):
        assert each.keys() == theirs.keys()
        assert all(torch.equal(each[key], theirs[key]) for key in theirs)


def test_a_grey_image_gives_the_logits_of_its_three_equal_channels(saved):
    name, arguments, folder = saved
    if name == "test_nfnet":
        return  # it standardises its filters, so their sum is another one
    rgb = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    grey = factory.create_model(Config(model=name, model_args=arguments, in_chans=1), 2).eval()
    give_initial_weights(grey, InitialWeights("w", rgb.state_dict()), ("a", "b"), name, 1)
    side = rgb.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(grey(images), rgb(images.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-3)
    assert default_layer(grey) == default_layer(rgb)


def test_weights_of_one_channel_are_adapted_to_three_and_others_are_refused():
    one = factory.create_model(Config(model_args={"width": 4}, in_chans=1), 2)
    three = factory.create_model(Config(model_args={"width": 4}), 2)
    note = give_initial_weights(three, InitialWeights("w", one.state_dict()), ("a", "b"), "custom_resnet")
    assert "prep.conv adapted from 1 to 3 channels" in note
    expected = one.prep.conv.weight.expand(-1, 3, -1, -1) / 3  # a grey image gives the same outputs
    torch.testing.assert_close(three.prep.conv.weight, expected)
    weights = {**one.state_dict(), "prep.conv.weight": torch.zeros(4, 1, 5, 5)}
    with pytest.raises(CheckpointError, match=r"prep.conv.weight \[4, 1, 5, 5\] instead of \[4, 3, 3, 3\]"):
        give_initial_weights(three, InitialWeights("w", weights), ("a", "b"), "custom_resnet")


def test_a_stem_that_moves_pixels_into_channels_is_adapted_as_by_timm():
    model = nn.Module()
    model.conv, weight = nn.Conv2d(16, 8, 3), torch.randn(8, 48, 3, 3)
    model.pretrained_cfg = {"first_conv": "conv"}
    adapted, note = adapt_input(model, {"conv.weight": weight}, 1)
    assert torch.equal(adapted["conv.weight"], adapt_input_conv(1, weight)) and "from 3 to 1 channel" in note
    model.conv = nn.Conv2d(32, 8, 3)
    assert adapt_input(model, {"conv.weight": weight}, 2) == ({"conv.weight": weight}, "")  # timm has no rule for it


def test_mean_and_standard_deviation_are_of_the_channels_of_the_images():
    resnet = {"model": "test_resnet"}
    for channels in (1, 2, 4):
        model = factory.create_model(Config(**resnet, in_chans=channels), 2)
        data, config = data_of(channels), Config(**resnet, in_chans=channels)
        scratch = make_preprocess(config, model, data)
        assert (scratch.mean, scratch.std) == (data.mean, data.std)  # the model's own are of three
        cfg = model.pretrained_cfg
        trained = make_preprocess(config.replace(pretrained=True), model, data)
        np.testing.assert_allclose(trained.mean, [np.mean(cfg["mean"])] * channels)
        np.testing.assert_allclose(trained.std, [np.mean(cfg["std"])] * channels)
        [note] = [
            line for line in preprocess_notes(config.replace(pretrained=True), model, data, trained) if "adapts" in line
        ]
        assert "of 3 channels, and in_chans" in note
        of_weights = Preprocess(64, (0.2,) * channels, (0.1,) * channels, 1.0, "bilinear")
        assert make_preprocess(config, model, data, of_weights).mean == of_weights.mean
    rgb = factory.create_model(Config(**resnet), 2)
    assert make_preprocess(Config(**resnet), rgb, data_of(3)).mean == tuple(rgb.pretrained_cfg["mean"])
    of_grey = Preprocess(64, (0.2,), (0.1,), 1.0, "bilinear")
    assert make_preprocess(Config(**resnet), rgb, data_of(3), of_grey).mean == (0.2,) * 3


def test_a_model_of_one_channel_asks_for_the_setting(tmp_path):
    grey = timm.create_model("test_resnet", in_chans=1, num_classes=2)
    about = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.2,)}
    save_for_hf(grey, str(tmp_path), model_config={"num_classes": 2}, data_config=about, safe_serialization=True)
    config = Config(model=f"local-dir:{tmp_path}")
    with pytest.raises(UsageError, match="takes images of 1 channel; set --in-chans 1"):
        make_preprocess(config, factory.create_model(config, 2), data_of(3))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("name", "arguments"), [("speedrun_cnn", {"width": 4}), ("custom_resnet", {"width": 20})])
def test_whitening_is_of_the_channels_of_the_images(channels, name, arguments):
    model = timm.create_model(name, in_chans=channels, **arguments)
    layer = model.stem.conv if name == "speedrun_cnn" else model.prep.conv
    noise = torch.randn(400, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    images = F.avg_pool2d(noise, 3, stride=1, padding=1) + 0.3 * noise
    whiten_first_layer(model, images)
    count = min(layer.out_channels // 2, channels * layer.kernel_size[0] * layer.kernel_size[1])
    outputs = F.conv2d(images, layer.weight[:count]).transpose(0, 1).flatten(1).detach().double().numpy()
    np.testing.assert_allclose(outputs @ outputs.T / outputs.shape[1], np.eye(count), atol=0.02)
    with pytest.raises(UsageError, match="convolution of images of 3 channels; set --whitening False"):
        whiten_first_layer(model, torch.zeros(2, 3, 9, 9))
