"""The networks of harness satisfy what timm requires of every model."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from harness.models import cifar_resnet, speedrun_cnn  # noqa: F401 - registers its model

PAGE = {"order": "conv-bn-relu-pool", "logit_scale": 0.125, "head_bias": False, "padding_mode": "reflect"}
# Narrow, to be quick: only the test of the full ones depends on the width.
CASES = [
    pytest.param("custom_resnet", {"width": 8}, id="custom_resnet"),
    pytest.param("custom_resnet", {"width": 8, **PAGE}, id="page"),
    pytest.param("resnet18_cifar", {"channels": (8, 16, 24, 32)}, id="resnet18_cifar"),
    pytest.param("speedrun_cnn", {"width": 8}, id="speedrun_cnn"),
]
every_model = pytest.mark.parametrize(("name", "kwargs"), CASES)
scripted = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning", "ignore:The TorchScript type:UserWarning"
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def side_at(name: str, reduction: int) -> int:
    """Return the side of a map for images of 32 x 32 pixels; the first layer of speedrun_cnn has no padding."""
    return 32 // reduction - (name == "speedrun_cnn")


def make(name: str, kwargs: dict[str, Any], **more: Any) -> nn.Module:
    return timm.create_model(name, **kwargs, **more).eval()


def images(count: int = 2, side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, side, side)


def test_timm_lists_exactly_these_two_under_the_module() -> None:
    assert timm.list_models(module="cifar_resnet") == ["custom_resnet", "resnet18_cifar"]
    assert all(timm.is_model(name) and not timm.models.is_model_pretrained(name) for name in cifar_resnet.__all__)


def test_no_model_of_timm_is_replaced() -> None:
    assert timm.create_model("resnet18", num_classes=2).conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("name", ["custom_resnet", "resnet18_cifar"])
def test_at_full_width_it_is_what_its_configuration_says(name: str) -> None:
    model, batch = make(name, {}), images(1)
    assert model.forward_features(batch).shape == (1, 512, 4, 4)
    assert model(batch).shape == (1, 10)
    assert [level["num_chs"] for level in model.feature_info][-4:] == [64, 128, 256, 512]


@every_model
def test_one_image_gives_finite_logits_of_the_default_classes(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs)
    logits = model(images(1))
    assert logits.shape == (1, 10) == (1, model.num_classes)
    assert logits.isfinite().all()


@every_model
@pytest.mark.parametrize("side", [16, 33, 48])
def test_other_image_sizes_give_logits_too(name: str, kwargs: dict[str, Any], side: int) -> None:
    assert make(name, kwargs)(images(side=side)).shape == (2, 10)


@every_model
def test_every_parameter_gets_a_gradient(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs, num_classes=42).train()
    logits = model(images(4))
    logits.square().mean().backward()
    assert logits.shape == (4, 42)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert [key for key, value in trained.items() if value.grad is None or not value.grad.isfinite().all()] == []
    fixed = [key for key, _ in model.named_parameters() if key not in trained]
    assert all("bn" in key and key.endswith("weight") for key in fixed) and (not fixed or name == "speedrun_cnn")


@every_model
def test_gradient_checkpointing_changes_neither_logits_nor_gradients(name: str, kwargs: dict[str, Any]) -> None:
    plain = make(name, kwargs).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(True)
    batch = images(4)
    logits = [model(batch) for model in (plain, saving)]
    assert torch.equal(*logits)
    for one in logits:
        one.square().sum().backward()
    for (key, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), key
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


@every_model
def test_checkpointed_intermediates_equal_the_plain_ones(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    plain = model.forward_intermediates(batch, intermediates_only=True)
    model.set_grad_checkpointing()
    for one, other in zip(plain, model.forward_intermediates(batch, intermediates_only=True), strict=True):
        assert torch.equal(one, other)


@every_model
def test_the_default_configuration_is_true_of_the_network(name: str, kwargs: dict[str, Any]) -> None:
    model, cfg = make(name, kwargs), timm.create_model(name).default_cfg
    assert cfg["input_size"] == (3, 32, 32) and cfg["num_classes"] == 10 and cfg["crop_pct"] == 1.0
    features = model.forward_features(images(1))
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= model.state_dict().keys()
    first = model.get_submodule(cfg["first_conv"])
    assert first is next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier(name_only=True) == cfg["classifier"]


@every_model
def test_timm_reads_the_right_preprocessing_from_it(name: str, kwargs: dict[str, Any]) -> None:
    data = resolve_data_config({}, model=make(name, kwargs))
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 1.0
    assert data["mean"] == (0.4914, 0.4822, 0.4465) and data["std"] == (0.2470, 0.2435, 0.2616)


@every_model
def test_the_head_is_features_then_pooling_then_classifier(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    features = model.forward_features(batch)
    assert torch.equal(model.forward_head(features), model(batch))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    expected = features.mean((2, 3)) if name == "resnet18_cifar" else features.amax((2, 3))
    assert torch.allclose(pooled, expected, atol=1e-6)


@every_model
def test_without_a_classifier_it_gives_pooled_features(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    pooled = model.forward_head(model.forward_features(batch), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(batch), pooled)
    assert make(name, kwargs, num_classes=0)(batch).shape == pooled.shape == (2, model.num_features)


@every_model
def test_without_classifier_and_pooling_it_gives_the_last_stage(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    model.reset_classifier(0, "")
    assert torch.equal(model(batch), model.forward_features(batch))
    assert make(name, kwargs, num_classes=0, global_pool="")(batch).shape[1:] == (
        model.num_features,
        *model.default_cfg["pool_size"],
    )


@every_model
def test_a_new_classifier_keeps_pooling_and_mode(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs)
    pool = model.global_pool.pool_type
    model.train().reset_classifier(7)
    assert model.global_pool.pool_type == pool and model.fc.training and model.num_classes == 7
    model.eval().reset_classifier(5, "catavgmax")
    assert model(images()).shape == (2, 5) and not model.fc.training
    assert model.head_hidden_size == model.fc.in_features == 2 * model.num_features
    double = make(name, kwargs).double()
    double.reset_classifier(3)
    assert double(images().double()).dtype == torch.float64


@every_model
def test_feature_channels_and_reductions_are_those_of_feature_info(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs, features_only=True)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 4
    maps = model(images())
    assert [tuple(one.shape) for one in maps] == [
        (2, count, side_at(name, by), side_at(name, by)) for count, by in zip(channels, reductions, strict=True)
    ]


@every_model
@pytest.mark.parametrize("extractor", ["list", "dict", "hook", "fx", "getter"])
def test_all_feature_extractors_of_timm_agree(name: str, kwargs: dict[str, Any], extractor: str) -> None:
    batch = images()
    torch.manual_seed(1)
    expected = make(name, kwargs).forward_intermediates(batch, indices=[1, 3], intermediates_only=True)
    torch.manual_seed(1)  # the same weights
    maps = make(name, kwargs, features_only=True, feature_cls=extractor, out_indices=(1, 3))(batch)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    for one, other in zip(maps, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_callers_feature_configuration_is_merged_with_the_default() -> None:
    model = make("custom_resnet", {"width": 8}, features_only=True, feature_cfg={"out_indices": (2,)})
    assert model.feature_info.channels() == [32]


@every_model
def test_intermediates_are_the_maps_of_feature_info_in_both_forms(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    last, maps = model.forward_intermediates(batch)
    assert torch.equal(last, model.forward_features(batch)) and torch.equal(last, maps[-1])
    info = model.feature_info
    assert [one.shape[1:] for one in maps] == [
        (level["num_chs"], *[side_at(name, level["reduction"])] * 2) for level in info
    ]
    only = model.forward_intermediates(batch, indices=[0, 2], intermediates_only=True)
    early = model.forward_intermediates(batch, indices=[0, 2], stop_early=True, intermediates_only=True)
    for index, one, other in zip((0, 2), only, early, strict=True):
        assert torch.equal(one, maps[index]) and torch.equal(other, maps[index])
    assert len(model.forward_intermediates(batch, indices=2, intermediates_only=True)) == 2


@every_model
def test_intermediates_equal_the_outputs_seen_by_hooks_on_the_modules_of_feature_info(
    name: str, kwargs: dict[str, Any]
) -> None:
    model, batch = make(name, kwargs), images()
    seen: list[torch.Tensor] = []
    modules = [model.get_submodule(level["module"]) for level in model.feature_info]
    handles = [module.register_forward_hook(lambda _m, _i, out: seen.append(out.clone())) for module in modules]
    maps = model.forward_intermediates(batch, intermediates_only=True)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(one, other) for one, other in zip(maps, seen, strict=True))


@every_model
@pytest.mark.parametrize("last", [0, 1, 2, -1])
def test_pruning_keeps_the_requested_maps_and_drops_the_rest(name: str, kwargs: dict[str, Any], last: int) -> None:
    model, batch = make(name, kwargs), images()
    count = len(model.feature_info)
    last %= count
    expected = model.forward_intermediates(batch, indices=[last], intermediates_only=True)[0]
    before = sum(parameter.numel() for parameter in model.parameters())
    assert model.prune_intermediate_layers([last]) == [last]
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    assert torch.equal(model(batch), expected)
    assert model.num_features == expected.shape[1]


@every_model
def test_a_traced_graph_computes_the_same_and_trains(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images(4)
    graph = create_feature_extractor(model, {"fc": "fc"}).eval()
    assert torch.allclose(graph(batch)["fc"] * getattr(model, "logit_scale", 1.0), model(batch), atol=1e-6)
    whole = torch.fx.symbolic_trace(model)
    assert torch.allclose(whole(batch), model(batch), atol=1e-6)
    whole.train()(batch).square().mean().backward()
    assert all(parameter.grad is not None for parameter in whole.parameters() if parameter.requires_grad)


@scripted
@every_model
def test_torchscript_computes_the_same(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs, scriptable=True), images()
    assert torch.allclose(torch.jit.script(model)(batch), model(batch), atol=1e-5)


@scripted
@every_model
def test_torchscript_takes_the_traced_graph(name: str, kwargs: dict[str, Any]) -> None:
    model, batch = make(name, kwargs), images()
    assert torch.allclose(torch.jit.script(torch.fx.symbolic_trace(model))(batch), model(batch), atol=1e-5)


@every_model
def test_it_can_be_made_without_memory_and_filled_later(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs, device="meta")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert model(images().to("meta")).shape == (2, 10)
    filled, real = model.to_empty(device="cpu"), make(name, kwargs)
    filled.load_state_dict(real.state_dict())
    batch = images()
    assert torch.equal(filled(batch), real(batch))


def test_weights_initialised_after_construction_without_memory_have_the_usual_scale() -> None:
    model = timm.create_model("custom_resnet", width=16, device="meta").to_empty(device="cpu")
    model.init_weights()
    usual = timm.create_model("custom_resnet", width=16)
    for (key, one), other in zip(model.state_dict().items(), usual.state_dict().values(), strict=True):
        if key.endswith("weight") and one.ndim > 1:
            assert one.std() == pytest.approx(float(other.std()), rel=0.2), key
        elif "fc" not in key:
            assert torch.equal(one, other), key


@every_model
def test_every_tensor_has_the_requested_type(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs, dtype=torch.bfloat16)
    floating = [tensor for tensor in itertools.chain(model.parameters(), model.buffers()) if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.bfloat16}


@every_model
def test_grey_images_are_an_argument(name: str, kwargs: dict[str, Any]) -> None:
    model = make(name, kwargs, in_chans=1)
    assert model.in_chans == 1 and model(images(channels=1)).shape == (2, 10)


@every_model
def test_unknown_arguments_are_refused(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="widht"):
        make(name, kwargs, widht=8)


@every_model
@pytest.mark.parametrize("coarse", [False, True])
def test_parameter_groups_hold_every_parameter_once_and_in_depth_order(
    name: str, kwargs: dict[str, Any], coarse: bool
) -> None:
    model = make(name, kwargs)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = [key for index in sorted(groups) for key in groups[index]]
    assert sorted(grouped) == sorted(key for key, _ in model.named_parameters())
    # The order of the groups is the order of computation, in which the parameters were made.
    assert grouped == [key for key, _ in model.named_parameters()]
    stages = 5 if name == "resnet18_cifar" else 4
    assert len(groups) == stages + 1 if coarse else len(groups) > stages + 1


def test_layer_decay_gives_the_classifier_the_highest_rate() -> None:
    model = make("custom_resnet", {"width": 4})
    optimizer = create_optimizer_v2(model, "sgd", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale.keys() == {id(p) for p in model.parameters()}
    assert scale[id(model.fc.weight)] == 1 > scale[id(model.layer3.residual.block2.conv.weight)]
    assert scale[id(model.prep.conv.weight)] == min(scale.values())


@every_model
def test_a_saved_folder_loads_in_timm_with_equal_logits(name: str, kwargs: dict[str, Any], tmp_path: Any) -> None:
    model, batch = make(name, kwargs, num_classes=7), images()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(batch), model(batch))
    more = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert torch.equal(more.forward_features(batch), model.forward_features(batch))
    assert more(batch).shape == (2, 3)
