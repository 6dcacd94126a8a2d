import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from harness.evaluation import cam_layers, gradcam
from harness.reporting.figures.gallery import Tile
from harness.reporting.figures.gradcam import gradcam_figure, overlay, shared_scale
from harness.utils.errors import UsageError

with warnings.catch_warnings():
    # scikit-learn, scipy and OpenCV, which it brings, may warn of their own affairs when they are first imported.
    warnings.simplefilter("ignore")
    import pytorch_grad_cam  # noqa: F401 - imported for that effect

FAST = [name for name, method in gradcam.METHODS.items() if not method.slow]


class Tiny(nn.Module):
    """Two convolutions, a global pool, a linear layer; ReLU in place, as in most networks."""

    def __init__(self, pool="max", channels=6):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.drop = nn.Dropout(0.3)
        self.pool = nn.AdaptiveMaxPool2d(1) if pool == "max" else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.drop(self.pool(self.second(self.first(images))).flatten(1)))


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    model = Tiny(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


def pictures(count=5, side=16, width=None, seed=1):
    return torch.randn(count, 3, side, width or side, generator=torch.Generator().manual_seed(seed))


def by_hand(model, images, targets):
    """Activation and its gradient at `second`, with autograd alone."""
    model = model.eval()
    activation = model.second(model.first(images))
    logits = model.head(model.pool(activation).flatten(1))
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), activation)
    return activation.detach(), gradient, logits.detach()


TARGETS = [0, 1, 2, 3, 1]


@pytest.mark.parametrize("pool", ["max", "average"])
def test_gradcam_and_hirescam_equal_their_definitions(pool):
    model, images = tiny(pool=pool), pictures()
    activation, gradient, _ = by_hand(model, images, TARGETS)
    definitions = {
        "gradcam": (gradient.mean((2, 3), keepdim=True) * activation).sum(1),
        "hirescam": (gradient * activation).sum(1),
        "layercam": (gradient.relu() * activation).sum(1),
    }
    for method, expected in definitions.items():
        maps = gradcam.explain(model, images, TARGETS, method=method)
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


@pytest.mark.parametrize("pool", ["max", "average"])
def test_the_sum_of_a_raw_hirescam_map_is_the_logit_without_its_bias(pool):
    model, images = tiny(pool=pool), pictures()
    maps = gradcam.explain(model, images, TARGETS, method="hirescam")
    with torch.no_grad():
        logits = model.eval()(images)[range(5), TARGETS]
    np.testing.assert_allclose(maps.raw.sum((1, 2)), (logits - model.head.bias[TARGETS]).detach(), atol=1e-5)


def test_a_model_that_looks_at_one_corner_lights_that_corner():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.stem.weight, 1.0)

        def forward(self, images):
            seen = self.stem(images)
            return torch.stack([seen[..., :4, :4].sum((1, 2, 3)), seen[..., -4:, -4:].sum((1, 2, 3))], 1)

    for method in ("hirescam", "layercam", "gradcamelementwise"):
        maps = gradcam.explain(Corner(), torch.ones(2, 3, 16, 16), [0, 1], method=method)
        assert maps.scaled[0, :4, :4].min() > 0.99 and maps.scaled[0].sum() == pytest.approx(16, rel=1e-3)
        assert maps.scaled[1, -4:, -4:].min() > 0.99 and maps.scaled[1].sum() == pytest.approx(16, rel=1e-3)
        assert maps.share.tolist() == [1, 1] and not maps.empty.any()


def found(model):
    """All of a model that a caller could notice."""
    return {
        "modes": [module.training for module in model.modules()],
        "asked": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "places": [
            (id(p), p.data_ptr(), p.dtype, p.device, p.stride()) for p in [*model.parameters(), *model.buffers()]
        ],
        "values": [value.clone() for value in model.state_dict().values()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "names": [name for name, _ in model.named_modules()],
    }


def assert_same(before, after):
    for key in ("modes", "asked", "places", "hooks", "names"):
        assert before[key] == after[key], key
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or (old[0] == new[0] and torch.equal(old[1], new[1]))
    assert all(map(torch.equal, before["values"], after["values"]))


def in_training():
    """A model in the middle of training: modes mixed, some parameters frozen, some gradients there, channels last."""
    model = tiny().train().to(memory_format=torch.channels_last)
    model(pictures()).sum().backward()
    model.first[1].eval()
    for parameter in model.first.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    model.head.register_forward_hook(lambda module, given, output: None)
    return model


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_a_model_is_left_as_it_was_found(method):
    model = in_training()
    before = found(model)
    gradcam.explain(model, pictures(), TARGETS, method=method)
    assert_same(before, found(model))


@pytest.mark.parametrize("layer", ["second", "head", "nowhere"])
def test_a_model_is_left_as_it_was_found_when_the_maps_can_not_be_made(layer):
    model = in_training()
    before = found(model)
    with pytest.raises(UsageError):
        gradcam.explain(model, pictures(), [0, 1, 2, 3, 4], layer=layer)
    assert_same(before, found(model))


@pytest.mark.parametrize(
    "where", ["no_grad", "inference_mode", "autocast", "frozen", "training", "half", "compiled", "wrapped"]
)
def test_maps_are_the_same_wherever_and_however_they_are_asked_for(where):
    model, images = tiny(), pictures()
    expected = gradcam.explain(model, images, TARGETS)
    around, asked = (
        {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(where, torch.enable_grad),
        model,
    )
    exact = 0.0
    if where == "autocast":

        def around():
            return torch.autocast("cpu", torch.bfloat16)
    elif where == "frozen":
        model.requires_grad_(False)
    elif where == "training":
        model.train()
    elif where == "half":
        asked, exact = model.to(torch.bfloat16), 0.05
    elif where == "compiled":
        asked = torch.compile(model, backend="eager")
        asked.eval()(images)
    elif where == "wrapped":
        asked = nn.DataParallel(model)
    before = found(asked)
    with around():
        maps = gradcam.explain(asked, images * 1, TARGETS)
        grad_enabled, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    assert (grad_enabled, autocast) == (where not in ("no_grad", "inference_mode"), where == "autocast")
    np.testing.assert_allclose(maps.raw, expected.raw, atol=exact or 1e-7)
    assert_same(before, found(asked))


def test_a_model_made_in_inference_mode_or_weight_normed_can_be_explained():
    with torch.inference_mode():
        made = tiny()
    assert made.head.weight.is_inference()
    assert len(gradcam.explain(made, pictures(), TARGETS)) == 5
    normed = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old kind of weight norm, which keeps a computed weight as an attribute
        nn.utils.weight_norm(normed.head)
    normed.eval()(pictures())
    assert not normed.head.weight.is_leaf
    np.testing.assert_allclose(
        gradcam.explain(normed, pictures(), TARGETS).raw, gradcam.explain(tiny(), pictures(), TARGETS).raw, atol=1e-5
    )


def test_a_layer_before_an_inplace_relu_shows_its_own_output():
    model, images = tiny(), pictures()
    maps = gradcam.explain(model, images, TARGETS, layer="second.1", method="hirescam")
    model.eval()
    activation = model.second[1](model.second[0](model.first(images)))
    logits = model.head(model.pool(model.second[3](activation.relu())).flatten(1))
    (gradient,) = torch.autograd.grad(logits[range(5), TARGETS].sum(), activation)
    np.testing.assert_allclose(maps.raw, (gradient * activation).sum(1).detach(), atol=1e-5)
    eigen = gradcam.explain(model, images, TARGETS, layer="second.1", method="eigencam")
    flat = (activation - activation.mean((2, 3), keepdim=True)).detach().flatten(2)
    strongest = torch.linalg.svdvals(flat)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(eigen.raw, axis=(1, 2)), strongest, rtol=1e-4)


def test_the_order_and_the_number_of_images_do_not_matter(monkeypatch):
    model, images = tiny(), pictures(7)
    targets = [0, 1, 2, 3, 0, 1, 2]
    together = gradcam.explain(model, images, targets)
    alone = np.concatenate([gradcam.explain(model, images[i : i + 1], targets[i : i + 1]).raw for i in range(7)])
    np.testing.assert_allclose(together.raw, alone, atol=1e-5)
    monkeypatch.setattr(gradcam, "_CHUNK", 3)
    np.testing.assert_allclose(gradcam.explain(model, images, torch.tensor(targets)).raw, together.raw, atol=1e-5)


def test_maps_with_nothing_to_see_are_called_empty():
    model, images = tiny(pool="average"), pictures(4)
    with torch.no_grad():
        model.head.weight[0] = -1.0  # all evidence is against class 0
        model.head.weight[1] = 0.0  # there is none about class 1
        model.head.weight[2] = 1.0
    maps = gradcam.explain(model, images, [0, 1, 2, 2])
    assert maps.empty.tolist() == [True, True, False, False]
    assert maps.share.tolist() == [0, 0, 1, 1]
    assert (maps.scaled[:2] == 0).all() and (maps.scaled[2:].max((1, 2)) > 0.9).all()
    assert (maps.raw[0] <= 0).all() and maps.raw[0].min() < 0
    level = gradcam._measure("hirescam", "x", np.full((1, 4, 4), 3.0, np.float32), np.zeros((1, 8, 8), np.float32))
    broken = gradcam._measure(
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
    images = pictures(2, side)
    assert gradcam.default_layer(model, images) == layer
    head = model.get_classifier()
    for part in head if isinstance(head, tuple) else [head]:
        nn.init.normal_(part.weight)  # some start at zero: nothing depends on anything
    assert gradcam.default_layer(model, images) == layer
    maps = gradcam.explain(model, images, [0, 2])
    assert maps.layer == layer and maps.raw.shape == (2, *size) and maps.scaled.shape == (2, side, side)
    assert np.isfinite(maps.raw).all() and (maps.raw != 0).any() and model.training


@pytest.mark.parametrize("method", FAST)
def test_every_fast_method_explains_a_transformer(method):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, depth=2)
    maps = gradcam.explain(model, pictures(2, 32), [0, 1], method=method)
    assert maps.raw.shape == (2, 4, 4) and np.isfinite(maps.raw).all()


@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_become_a_map_of_the_image_that_need_not_be_square(prefix):
    options = {"img_size": (32, 48), "patch_size": 8, "depth": 2, "num_classes": 3}
    options |= {"global_pool": "token", "reg_tokens": 4} if prefix else {"global_pool": "avg", "class_token": False}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    images = pictures(2, 32, 48)
    layer = cam_layers.find_layer(gradcam.private_copy(model), images[:1], "patch_embed")
    assert layer.size == (4, 6)
    patches = model.patch_embed(images)
    as_map = model.patch_embed.proj(images)
    assert torch.equal(layer.reshape(patches), as_map)
    tokens = torch.cat([torch.zeros(2, 5, patches.shape[2]), patches], 1)
    assert torch.equal(cam_layers.token_map(tokens, (4, 6)), as_map)
    maps = gradcam.explain(model, images, [0, 1])
    assert maps.raw.shape == (2, 4, 6) and maps.scaled.shape == (2, 32, 48)
    assert maps.layer == ("blocks.1.norm1" if prefix else "blocks.1")


def test_channels_last_maps_are_read_the_right_way_round():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(64, 96), depths=(1, 1, 1, 1), embed_dim=24, num_classes=3
    )
    images = pictures(1, 64, 96)
    for name, size in (("layers.1", (8, 12)), ("layers.3", (2, 3))):
        maps = gradcam.explain(model, images, [0], layer=name, method="hirescam")
        mine = model.eval()
        kept = []
        handle = mine.get_submodule(name).register_forward_hook(
            lambda module, given, output, kept=kept: kept.append(output)
        )
        logit = mine(images)[0, 0]
        handle.remove()
        (gradient,) = torch.autograd.grad(logit, kept[0])
        assert maps.raw.shape == (1, *size)
        np.testing.assert_allclose(maps.raw, (gradient * kept[0]).sum(3).detach(), atol=1e-5)


def test_a_stage_of_one_cell_is_passed_over_and_a_model_unknown_to_timm_gives_its_last_map():
    model = timm.create_model("resnet18", num_classes=3)
    assert gradcam.default_layer(model, pictures(1, 32)) == "layer3"
    assert (
        gradcam.default_layer(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        )
        == "1"
    )
    with pytest.raises(UsageError, match="no layer of the model gives a map"):
        gradcam.explain(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4)), pictures(), TARGETS)


def test_a_matrix_of_attention_is_not_taken_for_a_map():
    model = timm.create_model("crossvit_tiny_240", num_classes=3, depth=((1, 1, 0), (1, 1, 0)), num_heads=(1, 1))
    maps = gradcam.explain(model, pictures(1, 240), [0])
    assert maps.raw.shape[1] == maps.raw.shape[2] > 1 and (maps.raw != 0).any()


def test_what_can_not_be_explained_is_refused_with_the_remedy():
    model, images = tiny(), pictures()
    for layer, says in (("secnd", "did you mean 'second'"), ("head", r"\[1, 4\]"), ("first.9", "did you mean 'first")):
        with pytest.raises(UsageError, match=says):
            gradcam.explain(model, images, TARGETS, layer=layer)
    for targets in ([0, 1, 2, 3, 4], [0, 1, 2, 3, -1]):
        with pytest.raises(UsageError, match=r"there is no class (4|-1).*0\.\.3"):
            gradcam.explain(model, images, targets)
    with pytest.raises(UsageError, match=r"5, 3, 16, 16.*2 classes"):
        gradcam.explain(model, images, [0, 1])
    with pytest.raises(UsageError, match="did you mean 'gradcam"):
        gradcam.explain(model, images, TARGETS, method="gradcm")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, depth=2)
    with pytest.raises(UsageError, match="ablationcam cannot explain"):
        gradcam.explain(vit, pictures(1, 32), [0], method="ablationcam")

    class Twice(Tiny):
        def forward(self, images):
            return self.head(self.pool(self.second(self.first[2](self.first(images)))).flatten(1))

    with pytest.raises(UsageError, match="run 2 times"):
        gradcam.explain(Twice(), images, TARGETS, layer="first.2")


def test_methods_go_by_any_spelling():
    assert [gradcam.canonical_method(word) for word in ("Grad-CAM", "HiResCAM", "GradCAM++", "grad_cam_plusplus")] == [
        "gradcam",
        "hirescam",
        "gradcam++",
        "gradcam++",
    ]


def test_the_slow_methods_draw_no_progress_bars(capfd):
    for method in ("scorecam", "ablationcam"):
        maps = gradcam.explain(tiny(), pictures(2), [0, 1], method=method)
        assert maps.raw.shape == (2, 8, 8)
    assert capfd.readouterr().err == ""


def test_equal_evidence_looks_alike_in_every_panel_and_none_leaves_the_picture():
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    weak, strong = np.zeros((16, 16)), np.zeros((16, 16))
    weak[:8] = strong[:8] = 0.4
    strong[8:] = 1.0
    assert (overlay(picture, weak)[:8] == overlay(picture, strong)[:8]).all()
    none = overlay(picture, np.zeros((16, 16)))
    assert (overlay(picture, weak)[8:] == none[8:]).all()
    luma = picture @ [0.299, 0.587, 0.114]
    assert np.corrcoef(none.mean(2).ravel(), luma.ravel())[0, 1] > 0.98
    assert none.dtype == np.uint8 and overlay(picture, np.ones((4, 4))).shape == picture.shape
    ramp = overlay(np.full((1, 64, 3), 60, np.uint8), np.linspace(0, 1, 64)[None]).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(ramp[0]) > -2).all() and ramp[0, -1] > ramp[0, 0] + 100


def test_two_maps_of_an_image_are_compared_on_one_scale():
    model, images = tiny(), pictures()
    first, second = gradcam.explain(model, images, TARGETS), gradcam.explain(model, images, TARGETS[::-1])
    ours, theirs = shared_scale(first, second)
    for index in np.flatnonzero(~first.empty & ~second.empty):
        stronger = max(first.peak[index], second.peak[index])
        assert max(ours[index].max(), theirs[index].max()) <= 1 + 1e-6
        np.testing.assert_allclose(ours[index], first.scaled[index] * first.peak[index] / stronger, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 6])
def test_the_panel_draws_an_empty_map_as_a_hatched_box_and_never_as_a_picture(tmp_path, count):
    def some(empty):
        heat = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (count, 16, 1))
        flags = np.full(count, empty)
        heat[flags] = 0
        return gradcam.Maps(
            "hirescam", "layer", heat, heat, flags, np.ones(count, np.float32), np.ones(count, np.float32)
        )

    tiles = [Tile(np.full((16, 16, 3), (250, 20, 20), np.uint8), "$a_b$", "dog", 0.9, False) for _ in range(count)]
    read = {}
    for empty in (False, True):
        path = gradcam_figure(tiles, some(False), some(empty), tmp_path / f"{empty}.png", title="25 of $3")
        with Image.open(path) as picture:
            read[empty] = np.array(picture.convert("RGB")).astype(int)
    hatched = (abs(read[True] - 0xF0) <= 2).all(2).sum()
    assert hatched - (abs(read[False] - 0xF0) <= 2).all(2).sum() > 8_000 * count or count == 0
    assert (read[False] == read[True]).all() == (count == 0)
    if count:
        with pytest.raises(ValueError, match="a map of each kind"):
            gradcam_figure(tiles[1:] + tiles * 2, some(False), some(True), tmp_path / "x.png")
