"""Class-activation maps equal their definitions, and computing them leaves the model unchanged."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

from harness.evaluation import cam_layers, gradcam
from harness.utils.errors import UsageError
from tests.support.tiny_net import TinyNet, random_images, tiny_net

with warnings.catch_warnings():
    # scikit-learn, scipy and OpenCV, on which it depends, may warn when they are first imported.
    warnings.simplefilter("ignore")
    import pytorch_grad_cam  # noqa: F401 - imported for that effect

WITHOUT_SKLEARN = """
import sys
from harness.evaluation import gradcam
from tests.support.tiny_net import random_images, tiny_net
gradcam.compute_maps(tiny_net(), random_images(), [0, 1, 2, 3, 1], method="hirescam")
assert not any(name.startswith(("sklearn", "scipy.sparse")) for name in sys.modules), "imported in vain"
import numpy as np
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_kernel
assert get_2d_projection_kernel(np.random.default_rng(0).random((1, 4, 3, 3))).shape == (1, 3, 3)
import sklearn.decomposition
assert isinstance(sklearn.decomposition.KernelPCA, type)
"""

FAST = [name for name, method in gradcam.METHODS.items() if not method.is_slow]


def activation_and_gradient(model, images, targets):
    """Return activation, its gradient and the logits at `second`, with autograd alone."""
    model = model.eval()
    activation = model.second(model.first(images))
    logits = model.head(model.pool(activation).flatten(1))
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), activation)
    return activation.detach(), gradient, logits.detach()


def test_cudnn_does_not_measure_its_algorithms_for_a_few_maps(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    model, seen = tiny_net(), []
    model.head.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    gradcam.compute_maps(model, random_images()[:1], [0])
    assert seen and not any(seen) and torch.backends.cudnn.benchmark


TARGETS = [0, 1, 2, 3, 1]


@pytest.mark.parametrize("pool", ["max", "average"])
def test_gradcam_and_hirescam_equal_their_definitions(pool):
    model, images = tiny_net(pool=pool), random_images()
    activation, gradient, _ = activation_and_gradient(model, images, TARGETS)
    definitions = {
        "gradcam": (gradient.mean((2, 3), keepdim=True) * activation).sum(1),
        "hirescam": (gradient * activation).sum(1),
        "layercam": (gradient.relu() * activation).sum(1),
    }
    for method, expected in definitions.items():
        maps = gradcam.compute_maps(model, images, TARGETS, method=method)
        assert maps.layer == "second" and maps.raw.dtype == maps.scaled.dtype == np.float32
        np.testing.assert_allclose(maps.raw, expected, atol=1e-5)
        for index in np.flatnonzero(~maps.empty):
            positive = expected[index].relu()
            large = nn.functional.interpolate(positive[None, None], (16, 16), mode="bilinear", align_corners=False)[
                0, 0
            ]
            np.testing.assert_allclose(
                maps.scaled[index], (large - large.min()) / (large.max() - large.min()), atol=1e-4
            )
            assert maps.peak[index] == pytest.approx(float(positive.max()), rel=1e-4)


def test_no_gradient_is_computed_below_the_explained_layer():
    recorded = []

    class Watched(TinyNet):
        def forward(self, images):
            below = self.first(images)
            above = self.second(below)
            recorded.append((below.requires_grad, above.requires_grad))
            return self.head(self.drop(self.pool(above).flatten(1)))

    gradcam.compute_maps(Watched(), random_images(), TARGETS, layer="second")
    assert recorded[-1] == (False, True)  # the passes before it choose the layer


@pytest.mark.parametrize("pool", ["max", "average"])
def test_the_sum_of_a_raw_hirescam_map_is_the_logit_without_its_bias(pool):
    model, images = tiny_net(pool=pool), random_images()
    maps = gradcam.compute_maps(model, images, TARGETS, method="hirescam")
    with torch.no_grad():
        logits = model.eval()(images)[range(5), TARGETS]
    np.testing.assert_allclose(maps.raw.sum((1, 2)), (logits - model.head.bias[TARGETS]).detach(), atol=1e-5)


def test_a_model_that_uses_one_corner_has_its_evidence_in_that_corner():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.stem.weight, 1.0)

        def forward(self, images):
            features = self.stem(images)
            corners = features[..., :4, :4], features[..., -4:, -4:]
            return torch.stack([corner.sum((1, 2, 3)) for corner in corners], 1)

    for method in ("hirescam", "layercam", "gradcamelementwise"):
        maps = gradcam.compute_maps(Corner(), torch.ones(2, 3, 16, 16), [0, 1], method=method)
        assert maps.scaled[0, :4, :4].min() > 0.99 and maps.scaled[0].sum() == pytest.approx(16, rel=1e-3)
        assert maps.scaled[1, -4:, -4:].min() > 0.99 and maps.scaled[1].sum() == pytest.approx(16, rel=1e-3)
        assert maps.share.tolist() == [1, 1] and not maps.empty.any()


def snapshot(model):
    """Return all of a model that a caller could see changed."""
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "tensors": [
            (id(p), p.data_ptr(), p.dtype, p.device, p.stride()) for p in [*model.parameters(), *model.buffers()]
        ],
        "values": [value.clone() for value in model.state_dict().values()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "names": [name for name, _ in model.named_modules()],
    }


def assert_same(before, after):
    for key in ("modes", "requires_grad", "tensors", "hooks", "names"):
        assert before[key] == after[key], key
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or (old[0] == new[0] and torch.equal(old[1], new[1]))
    assert all(map(torch.equal, before["values"], after["values"]))


def in_training():
    """Return a model as in the middle of training: mixed modes, frozen parameters, gradients, channels last."""
    model = tiny_net().train().to(memory_format=torch.channels_last)
    model(random_images()).sum().backward()
    model.first[1].eval()
    for parameter in model.first.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    model.head.register_forward_hook(lambda module, inputs, output: None)
    return model


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_a_model_is_left_unchanged(method):
    model = in_training()
    before = snapshot(model)
    gradcam.compute_maps(model, random_images(), TARGETS, method=method)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("layer", ["second", "head", "nowhere"])
def test_a_model_is_left_unchanged_when_the_maps_can_not_be_computed(layer):
    model = in_training()
    before = snapshot(model)
    with pytest.raises(UsageError):
        gradcam.compute_maps(model, random_images(), [0, 1, 2, 3, 4], layer=layer)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "where", ["no_grad", "inference_mode", "autocast", "frozen", "training", "half", "compiled", "wrapped"]
)
def test_maps_are_the_same_in_every_context_and_for_every_state_of_the_model(where):
    model, images = tiny_net(), random_images()
    expected = gradcam.compute_maps(model, images, TARGETS)
    context, tested = (
        {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(where, torch.enable_grad),
        model,
    )
    tolerance = 1e-7
    if where == "autocast":

        def context():
            return torch.autocast("cpu", torch.bfloat16)
    elif where == "frozen":
        model.requires_grad_(False)
    elif where == "training":
        model.train()
    elif where == "half":
        tested, tolerance = model.to(torch.bfloat16), 0.05
    elif where == "compiled":
        tested = torch.compile(model, backend="eager")
        tested.eval()(images)
    elif where == "wrapped":
        tested = nn.DataParallel(model)
    before = snapshot(tested)
    with context():
        maps = gradcam.compute_maps(tested, images * 1, TARGETS)
        grad_enabled, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    assert (grad_enabled, autocast) == (where not in ("no_grad", "inference_mode"), where == "autocast")
    np.testing.assert_allclose(maps.raw, expected.raw, atol=tolerance)
    assert_same(before, snapshot(tested))


def test_a_model_created_in_inference_mode_or_with_weight_norm_can_be_explained():
    with torch.inference_mode():
        created = tiny_net()
    assert created.head.weight.is_inference()
    assert len(gradcam.compute_maps(created, random_images(), TARGETS)) == 5
    normed = tiny_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old kind of weight norm, which keeps a computed weight as an attribute
        nn.utils.weight_norm(normed.head)
    normed.eval()(random_images())
    assert not normed.head.weight.is_leaf
    np.testing.assert_allclose(
        gradcam.compute_maps(normed, random_images(), TARGETS).raw,
        gradcam.compute_maps(tiny_net(), random_images(), TARGETS).raw,
        atol=1e-5,
    )


def test_a_layer_before_an_inplace_relu_shows_its_own_output():
    model, images = tiny_net(), random_images()
    maps = gradcam.compute_maps(model, images, TARGETS, layer="second.1", method="hirescam")
    model.eval()
    activation = model.second[1](model.second[0](model.first(images)))
    logits = model.head(model.pool(model.second[3](activation.relu())).flatten(1))
    (gradient,) = torch.autograd.grad(logits[range(5), TARGETS].sum(), activation)
    np.testing.assert_allclose(maps.raw, (gradient * activation).sum(1).detach(), atol=1e-5)
    eigen = gradcam.compute_maps(model, images, TARGETS, layer="second.1", method="eigencam")
    flat = (activation - activation.mean((2, 3), keepdim=True)).detach().flatten(2)
    strongest = torch.linalg.svdvals(flat)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(eigen.raw, axis=(1, 2)), strongest, rtol=1e-4)


def test_the_order_and_the_number_of_images_do_not_matter(monkeypatch):
    model, images = tiny_net(), random_images(7)
    targets = [0, 1, 2, 3, 0, 1, 2]
    together = gradcam.compute_maps(model, images, targets)
    alone = np.concatenate([gradcam.compute_maps(model, images[i : i + 1], targets[i : i + 1]).raw for i in range(7)])
    np.testing.assert_allclose(together.raw, alone, atol=1e-5)
    monkeypatch.setattr(gradcam, "MAX_CHUNK", 3)
    np.testing.assert_allclose(gradcam.compute_maps(model, images, torch.tensor(targets)).raw, together.raw, atol=1e-5)


def test_maps_without_evidence_are_marked_empty():
    model, images = tiny_net(pool="average"), random_images(4)
    with torch.no_grad():
        model.head.weight[0] = -1.0  # all evidence is against class 0
        model.head.weight[1] = 0.0  # there is none about class 1
        model.head.weight[2] = 1.0
    maps = gradcam.compute_maps(model, images, [0, 1, 2, 2])
    assert maps.empty.tolist() == [True, True, False, False]
    assert maps.share.tolist() == [0, 0, 1, 1]
    assert (maps.scaled[:2] == 0).all() and (maps.scaled[2:].max((1, 2)) > 0.9).all()
    assert (maps.raw[0] <= 0).all() and maps.raw[0].min() < 0
    level = gradcam.make_maps("hirescam", "x", np.full((1, 4, 4), 3.0, np.float32), np.zeros((1, 8, 8), np.float32))
    broken = gradcam.make_maps(
        "hirescam", "x", np.full((1, 4, 4), np.nan, np.float32), np.full((1, 8, 8), np.nan, np.float32)
    )
    assert level.empty.all() and broken.empty.all() and (broken.scaled == 0).all()


SMALL = {
    "resnet18": ({}, 64, "layer4", (2, 2)),
    "efficientnet_b0": ({}, 64, "blocks.6", (2, 2)),
    "convnext_atto": ({}, 64, "stages.3", (2, 2)),
    "densenet121": ({"growth_rate": 4}, 64, "features.norm5", (2, 2)),
    "mobilevit_xxs": ({}, 64, "final_conv", (2, 2)),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24}, 64, "layers.3", (2, 2)),
    "vit_tiny_patch16_224": ({"img_size": 32, "patch_size": 8, "depth": 2}, 32, "blocks.1.norm1", (4, 4)),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "patch_size": 8, "depth": 2}, 32, "blocks.1.norm1", (4, 4)),
    "beit_base_patch16_224": (
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
        32,
        "blocks.1",
        (4, 4),
    ),
    "mixer_s32_224": ({"img_size": 64}, 64, "blocks.7", (2, 2)),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_default_layer_of_each_kind_of_network_gives_a_map(name):
    options, side, layer, size = SMALL[name]
    model = timm.create_model(name, num_classes=3, **options)
    images = random_images(2, side)
    assert gradcam.default_layer(model, images) == layer
    head = model.get_classifier()
    for part in head if isinstance(head, tuple) else [head]:
        nn.init.normal_(part.weight)  # some are initialised to zero, and no logit depends on any input
    assert gradcam.default_layer(model, images) == layer
    maps = gradcam.compute_maps(model, images, [0, 2])
    assert maps.layer == layer and maps.raw.shape == (2, *size) and maps.scaled.shape == (2, side, side)
    assert np.isfinite(maps.raw).all() and (maps.raw != 0).any() and model.training


@pytest.mark.parametrize("method", FAST)
def test_every_fast_method_explains_a_transformer(method):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, depth=2)
    maps = gradcam.compute_maps(model, random_images(2, 32), [0, 1], method=method)
    assert maps.raw.shape == (2, 4, 4) and np.isfinite(maps.raw).all()


@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_become_a_map_of_an_image_that_need_not_be_square(prefix):
    options = {"img_size": (32, 48), "patch_size": 8, "depth": 2, "num_classes": 3}
    options |= {"global_pool": "token", "reg_tokens": 4} if prefix else {"global_pool": "avg", "class_token": False}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    images = random_images(2, 32, 48)
    layer = cam_layers.find_layer(gradcam.private_copy(model), images[:1], "patch_embed")
    assert layer.size == (4, 6)
    patches = model.patch_embed(images)
    as_map = model.patch_embed.proj(images)
    assert torch.equal(layer.reshape(patches), as_map)
    tokens = torch.cat([torch.zeros(2, 5, patches.shape[2]), patches], 1)
    assert torch.equal(cam_layers.token_map(tokens, (4, 6)), as_map)
    maps = gradcam.compute_maps(model, images, [0, 1])
    assert maps.raw.shape == (2, 4, 6) and maps.scaled.shape == (2, 32, 48)
    assert maps.layer == ("blocks.1.norm1" if prefix else "blocks.1")


def test_channels_last_outputs_are_read_with_the_right_axes():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(64, 96), depths=(1, 1, 1, 1), embed_dim=24, num_classes=3
    )
    images = random_images(1, 64, 96)
    for name, size in (("layers.1", (8, 12)), ("layers.3", (2, 3))):
        maps = gradcam.compute_maps(model, images, [0], layer=name, method="hirescam")
        model.eval()
        kept = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.append(output)
        )
        logit = model(images)[0, 0]
        handle.remove()
        (gradient,) = torch.autograd.grad(logit, kept[0])
        assert maps.raw.shape == (1, *size)
        np.testing.assert_allclose(maps.raw, (gradient * kept[0]).sum(3).detach(), atol=1e-5)


def test_a_stage_of_one_cell_is_skipped_and_a_model_unknown_to_timm_gives_its_last_map():
    model = timm.create_model("resnet18", num_classes=3)
    assert gradcam.default_layer(model, random_images(1, 32)) == "layer3"
    assert (
        gradcam.default_layer(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        )
        == "1"
    )
    with pytest.raises(UsageError, match="no layer of the model gives a map"):
        gradcam.compute_maps(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4)), random_images(), TARGETS)


@pytest.mark.parametrize(
    ("name", "side", "layer", "cells"),
    [("resnet18", 64, "layer3", 4), ("resnet18", 32, "layer2", 4), ("resnet18", 4, "", 0)],
)
def test_where_maps_are_coarse_an_earlier_layer_is_named_that_has_at_least_4_cells_a_side(name, side, layer, cells):
    model, image = timm.create_model(name, num_classes=3).eval(), random_images(1, side)
    text = gradcam.finer_maps(model, image)
    if not layer:
        assert "--cam-layer" not in text and "larger --image-size" in text
        return
    assert text.startswith(f"--cam-layer {layer} has {cells} x {cells} cells") and "--image-size" not in text
    maps = gradcam.compute_maps(model, image, [0], layer=layer)
    assert maps.raw.shape == (1, cells, cells) and not maps.resolution.is_coarse


def test_a_transformer_of_few_patches_has_no_layer_with_more_cells():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=2).eval()
    assert "--cam-layer" not in gradcam.finer_maps(model, random_images(1, 32))


def test_an_attention_matrix_is_not_mistaken_for_a_map():
    model = timm.create_model("crossvit_tiny_240", num_classes=3, depth=((1, 1, 0), (1, 1, 0)), num_heads=(1, 1))
    maps = gradcam.compute_maps(model, random_images(1, 240), [0])
    assert maps.raw.shape[1] == maps.raw.shape[2] > 1 and (maps.raw != 0).any()


def test_what_can_not_be_explained_is_refused_with_the_remedy():
    model, images = tiny_net(), random_images()
    for layer, message in (
        ("secnd", "did you mean 'second'"),
        ("head", r"\[1, 4\]"),
        ("first.9", "did you mean 'first"),
    ):
        with pytest.raises(UsageError, match=message):
            gradcam.compute_maps(model, images, TARGETS, layer=layer)
    for targets in ([0, 1, 2, 3, 4], [0, 1, 2, 3, -1]):
        with pytest.raises(UsageError, match=r"there is no class (4|-1).*0\.\.3"):
            gradcam.compute_maps(model, images, targets)
    with pytest.raises(UsageError, match=r"5, 3, 16, 16.*2 classes"):
        gradcam.compute_maps(model, images, [0, 1])
    with pytest.raises(UsageError, match="did you mean 'gradcam"):
        gradcam.compute_maps(model, images, TARGETS, method="gradcm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, depth=2)
    with pytest.raises(UsageError, match="ablationcam cannot explain"):
        gradcam.compute_maps(vit, random_images(1, 32), [0], method="ablationcam")

    class Twice(TinyNet):
        def forward(self, images):
            return self.head(self.pool(self.second(self.first[2](self.first(images)))).flatten(1))

    with pytest.raises(UsageError, match="run 2 times"):
        gradcam.compute_maps(Twice(), images, TARGETS, layer="first.2")


def test_methods_are_known_in_any_spelling():
    assert [gradcam.canonical_method(name) for name in ("Grad-CAM", "HiResCAM", "GradCAM++", "grad_cam_plusplus")] == [
        "gradcam",
        "hirescam",
        "gradcam++",
        "gradcam++",
    ]


def test_a_method_is_slow_where_its_forward_passes_grow_with_the_channels():
    """Slow ones are given the images one at a time, since the package keeps what each of those passes computes."""
    net, images = tiny_net(), random_images(2)
    for name, method in gradcam.METHODS.items():
        batches = []
        handle = net.register_forward_pre_hook(lambda module, inputs, batches=batches: batches.append(len(inputs[0])))
        gradcam.compute_maps(net, images, [0, 1], method=name)
        handle.remove()
        assert method.is_slow == (sum(batches) > 3 * len(images)), name


def test_the_slow_methods_draw_no_progress_bars(capfd):
    for method in ("scorecam", "ablationcam"):
        maps = gradcam.compute_maps(tiny_net(), random_images(2), [0, 1], method=method)
        assert maps.raw.shape == (2, 8, 8)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_maps_do_not_import_scikit_learn_and_what_of_the_package_needs_it_still_works():
    subprocess.run([sys.executable, "-c", WITHOUT_SKLEARN], check=True, timeout=120)


class Tokens(nn.Module):
    """A transformer that timm does not know: so many patches, one layer, a mean and a head."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.layer, self.head = nn.Linear(48, 8), nn.Linear(8, 3)

    def forward(self, images):
        tokens = images.flatten(1)[:, : self.count * 48].unflatten(1, (self.count, 48))
        return self.head(self.layer(tokens).mean(1))


def test_a_model_unknown_to_timm_whose_head_is_zero_gives_its_last_map_too():
    for model in (tiny_net(), Tokens(16)):
        expected = gradcam.default_layer(model, random_images())
        nn.init.zeros_(model.head.weight)
        assert gradcam.default_layer(model, random_images()) == expected


def test_tokens_that_fill_no_grid_of_the_image_are_refused_by_name():
    with pytest.raises(UsageError, match="layer 'layer' gives 15 tokens, which fill no grid; choose another layer"):
        gradcam.compute_maps(Tokens(15), random_images(), [0] * 5, layer="layer")
    assert gradcam.compute_maps(Tokens(16), random_images(), [0] * 5, layer="layer").raw.shape == (5, 4, 4)


@pytest.mark.parametrize(
    ("answer", "shown"), [(lambda logits: logits[:, None], r"\[1, 1, 4\]"), (lambda logits: {"logits": logits}, "dict")]
)
def test_a_model_that_gives_no_logits_is_refused_with_what_it_gives(answer, shown):
    class Other(TinyNet):
        def forward(self, images):
            return answer(super().forward(images))

    with pytest.raises(UsageError, match=rf"the model gives {shown} for one image: need logits \[B, classes\]"):
        gradcam.default_layer(Other(), random_images()[:1])


def test_tokens_that_the_logits_give_no_gradient_are_no_map():
    class Features(nn.Module):
        """A transformer in name, whose blocks are a fixed extractor of features."""

        def __init__(self):
            super().__init__()
            self.patch_embed, self.blocks, self.head = nn.Linear(48, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 3)

        def forward(self, images):
            with torch.no_grad():
                tokens = self.blocks(self.patch_embed(images.flatten(1).unflatten(1, (16, 48))))
            return self.head(tokens.mean(1))

    with pytest.raises(UsageError, match="no layer of the model gives a map"):
        gradcam.default_layer(Features(), random_images()[:1])
