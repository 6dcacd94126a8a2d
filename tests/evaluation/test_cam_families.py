"""The layer that Grad-CAM takes by itself in every family of timm's registry: one small model of each module.

The table was made with timm 1.0.31 and looked through by hand: each layer is the end of the last stage, its last tokens,
or the norm before its last attention where only a class token is classified.
"""

import pytest
import timm
import torch

from harness.evaluation.cam_layers import find_layer

# model: (layer, cells of its map)
FAMILIES = {
    "beit_base_patch16_224": ("blocks.11", (14, 14)),
    "halonet_h1": ("final_conv", (8, 8)),
    "mobileone_s1": ("final_conv", (7, 7)),
    "cait_xxs24_384": ("blocks.23", (24, 24)),
    "coat_tiny": ("parallel_blocks.5.norm14", (7, 7)),
    "convit_tiny": ("blocks.11.norm1", (14, 14)),
    "convmixer_768_32": ("blocks.31", (32, 32)),
    "convnext_atto_rms": ("stages.3", (7, 7)),
    "cpubone_nano": ("stages.3", (7, 7)),
    "crossvit_tiny_240": ("blocks.2.blocks.1", (14, 14)),
    "csatv2": ("stages.3", (8, 8)),
    "cs3darknet_focus_s": ("stages.3", (8, 8)),
    "cspnext_tiny": ("stages.3", (7, 7)),
    "davit_tiny": ("stages.3", (7, 7)),
    "deit_tiny_patch16_224": ("blocks.11.norm1", (14, 14)),
    "densenet121": ("features.norm5", (7, 7)),
    "dla34": ("level5", (7, 7)),
    "dpn68": ("features.conv5_3", (7, 7)),
    "edgenext_xx_small": ("stages.3", (8, 8)),
    "efficientformer_l1": ("stages.3", (7, 7)),
    "efficientformerv2_s0": ("stages.3", (7, 7)),
    "tinynet_e": ("blocks.6", (4, 4)),
    "efficientvim_m1": ("norm.3", (4, 4)),
    "efficientvit_b0": ("stages.3", (7, 7)),
    "efficientvit_m0": ("stages.2", (4, 4)),
    "eva02_tiny_patch14_224": ("blocks.11", (16, 16)),
    "fasternet_t0": ("stages.3", (7, 7)),
    "fastvit_t12": ("stages.3", (8, 8)),
    "focalnet_tiny_srf": ("layers.3", (7, 7)),
    "gcvit_xxtiny": ("stages.3", (7, 7)),
    "ghostnet_050": ("blocks.7", (7, 7)),
    "hardcorenas_a": ("blocks.6", (7, 7)),
    "hgnetv2_b0": ("stages.3", (7, 7)),
    "hiera_tiny_224": ("blocks.11", (7, 7)),
    "sam2_hiera_tiny": ("blocks.11", (28, 28)),
    "hrnet_w18_small": ("final_layer", (7, 7)),
    "iformer_t": ("stages.3", (7, 7)),
    "inception_next_atto": ("stages.3", (7, 7)),
    "inception_resnet_v2": ("conv2d_7b", (8, 8)),
    "inception_v3": ("Mixed_7c", (8, 8)),
    "inception_v4": ("features.21", (8, 8)),
    "lcnetv2_small": ("stages.3", (7, 7)),
    "levit_384_s8": ("stages.2", (7, 7)),
    "lowformer_b0": ("stages.3", (7, 7)),
    "mambaout_femto": ("stages.3", (7, 7)),
    "maxvit_pico_rw_256": ("stages.3", (8, 8)),
    "poolformer_s12": ("stages.3", (7, 7)),
    "mixer_s16_224": ("blocks.7", (14, 14)),
    "mobilenetv3_small_050": ("blocks.5", (7, 7)),
    "mobilenetv5_base": ("blocks.3", (8, 8)),
    "mobilevit_xxs": ("final_conv", (8, 8)),
    "mvitv2_tiny": ("norm", (7, 7)),
    "naflexvit_base_patch16_siglip": ("blocks.11", (24, 24)),
    "nasnetalarge": ("act", (11, 11)),
    "nest_tiny": ("levels.2", (14, 14)),
    "nextvit_small": ("stages.3", (7, 7)),
    "nf_regnet_b0": ("final_conv", (6, 6)),
    "pit_xs_224": ("transformers.2.blocks.3.norm1", (7, 7)),
    "pnasnet5large": ("act", (11, 11)),
    "pvt_v2_b0": ("stages.3", (7, 7)),
    "rdnet_tiny": ("dense_stages.6", (7, 7)),
    "regnetx_002": ("s4", (7, 7)),
    "repghostnet_050": ("blocks.7", (7, 7)),
    "repvit_m1": ("stages.3", (7, 7)),
    "res2net50_26w_4s": ("layer4", (7, 7)),
    "resnest14d": ("layer4", (7, 7)),
    "resnet18": ("layer4", (7, 7)),
    "resnetv2_18": ("stages.3", (7, 7)),
    "rexnet_150": ("features.15", (7, 7)),
    "selecsls42": ("head.3", (4, 4)),
    "legacy_seresnet34": ("layer4", (7, 7)),
    "sequencer2d_s": ("stages.3", (16, 16)),
    "shvit_s1": ("stages.2", (4, 4)),
    "skresnet18": ("layer4", (7, 7)),
    "starnet_s050": ("stages.3", (7, 7)),
    "swiftformer_xs": ("stages.3", (7, 7)),
    "swin_tiny_patch4_window7_224": ("layers.3", (7, 7)),
    "swinv2_tiny_window8_256": ("layers.3", (8, 8)),
    "swinv2_cr_tiny_224": ("stages.3", (7, 7)),
    "tiny_vit_5m_224": ("stages.3", (7, 7)),
    "tnt_s_legacy_patch16_224": ("blocks.11.norm_out", (14, 14)),
    "tresnet_m": ("body.layer4", (7, 7)),
    "twins_svt_small": ("norm", (7, 7)),
    "vgg11": ("features.20", (7, 7)),
    "visformer_tiny": ("stage3", (7, 7)),
    "vit_tiny_patch16_224": ("blocks.11.norm1", (14, 14)),
    "vit_tiny_r_s16_p8_224": ("blocks.11.norm1", (7, 7)),
    "vit_srelpos_small_patch16_224": ("blocks.11", (14, 14)),
    "samvit_base_patch16": ("blocks.11", (64, 64)),
    "vitamin_small_224": ("blocks.13", (14, 14)),
    "volo_d2_224": ("network.4", (14, 14)),
    "ese_vovnet19b_slim_dw": ("stages.3", (7, 7)),
    "legacy_xception": ("act4", (10, 10)),
    "xception41": ("blocks.12", (10, 10)),
    "xcit_nano_12_p8_224": ("blocks.11", (28, 28)),
}
# Models that are too large as they are, with few blocks: (arguments, side of the image, layer, cells of its map).
SHORTENED = {
    "samvit_base_patch16_224": ({"depth": 2, "global_attn_indexes": (1,)}, 224, "blocks.1", (14, 14)),
    "deepseek_vit_412m": ({"depth": 2, "img_size": 224}, 224, "encoder.blocks.1", (16, 16)),
    "gemma4_vit_167m": ({"depth": 2, "img_size": 224}, 224, "encoder", (14, 14)),
    "qwen3_vit_88m": ({"depth": 2, "img_size": 224}, 224, "encoder.blocks.1", (14, 14)),
}
QUICK = ("crossvit_tiny_240", "coat_tiny", "pit_xs_224")
CORRECTED = (*QUICK, "tnt_s_legacy_patch16_224", "twins_svt_small", "mvitv2_tiny")


def model_of(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **arguments).eval()


def check(name):
    model = model_of(name)
    layer = find_layer(model, torch.randn(1, *model.pretrained_cfg["input_size"]))
    assert (layer.name, layer.size) == FAMILIES[name]


@pytest.mark.parametrize("name", QUICK)
def test_where_the_stages_of_a_transformer_return_no_map_its_last_tokens_are_taken(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_each_family_of_timm_has_a_layer_in_its_last_stage(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTENED)
def test_each_family_of_large_models_has_a_layer_in_its_last_stage(name):
    arguments, side, layer, size = SHORTENED[name]
    result = find_layer(model_of(name, **arguments), torch.randn(1, 3, side, side))
    assert (result.name, result.size) == (layer, size)


@pytest.mark.slow
def test_the_table_has_every_module_of_timm():
    # Other tests of the same process may have registered models of their own.
    modules = {
        module: names
        for module, names in timm.models._registry._module_to_models.items()
        if any(timm.model_entrypoint(name).__module__.startswith("timm.") for name in names)
    }
    named = {timm.models._registry._model_to_module[name] for name in (*FAMILIES, *SHORTENED)}
    assert named >= modules.keys()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CORRECTED])
def test_a_change_of_a_quarter_of_the_image_changes_that_quarter_of_the_map_most(name):
    """An attention matrix, for one, changes everywhere."""
    model = model_of(name)
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    layer = find_layer(model, image)
    outputs = []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: outputs.append(layer.reshape(output)))
    half, size = image.shape[-1] // 2, image.shape[-1]
    changed = image.clone()
    changed[..., size - half :, size - half :] = torch.randn(3, half, half)
    with torch.no_grad():
        for each in (image, changed):
            model(each)
    handle.remove()
    change = (outputs[1] - outputs[0]).abs().mean((0, 1))
    cells = layer.size[0] // 2
    quarters = [
        change[rows, columns].mean()
        for rows in (slice(cells), slice(-cells, None))
        for columns in (slice(cells), slice(-cells, None))
    ]
    assert quarters[3] == max(quarters) and quarters[3] > 1.2 * sum(quarters[:3]) / 3
