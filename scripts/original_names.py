#!/usr/bin/env python3
"""Makes testdata/convert/FAMILY.names.gz: every tensor of a full-size single file, by the code that the layout comes from.

Each line is the original name, its shape, and the parameters of a diffusers directory that hold it, by diffusers' own
converter, with tabs between. README.md beside this file says what must be installed.
"""

import gzip
import json
import sys
import types
from pathlib import Path
from unittest import mock

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as diffusers_converter

ROOT = Path(__file__).resolve().parent.parent
PRESETS = {"sd1": "sd1", "sd2": "sd2-base", "sdxl": "sdxl"}


def original_unet(family):
    """CompVis's UNetModel with the settings of v1-inference.yaml, v2-inference.yaml and sd_xl_base.yaml."""
    from ldm.modules.diffusionmodules import openaimodel

    # It only asks whether a setting is a list of this library.
    sys.modules["omegaconf"] = sys.modules["omegaconf.listconfig"] = types.SimpleNamespace(ListConfig=tuple)
    settings = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=2,
                    use_spatial_transformer=True, transformer_depth=1, use_checkpoint=False, legacy=False)
    if family == "sd1":
        settings |= dict(attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], num_heads=8, context_dim=768)
    elif family == "sd2":
        settings |= dict(attention_resolutions=[4, 2, 1], channel_mult=[1, 2, 4, 4], num_head_channels=64, context_dim=1024,
                         use_linear_in_transformer=True)
    else:
        # Stability's later code differs from this in two ways: the depth of a transformer is that of its level, and the
        # pooled text embedding and the sizes come in by label_emb.
        settings |= dict(attention_resolutions=[4, 2], channel_mult=[1, 2, 4], num_head_channels=64, context_dim=2048,
                         use_linear_in_transformer=True)
        plain = openaimodel.SpatialTransformer

        def by_level(channels, *args, **kwargs):
            depth = {640: 2, 1280: 10}[channels]
            return plain(channels, *args, **kwargs | dict(depth=depth, context_dim=[2048] * depth))

        with mock.patch.object(openaimodel, "SpatialTransformer", by_level):
            unet = openaimodel.UNetModel(**settings)
        embedding = [torch.nn.Linear(2816, 1280), torch.nn.SiLU(), torch.nn.Linear(1280, 1280)]
        unet.label_emb = torch.nn.Sequential(torch.nn.Sequential(*embedding))
        return unet
    return openaimodel.UNetModel(**settings)


def original_vae():
    """CompVis's AutoencoderKL, whose own module only adds training to these four."""
    from ldm.modules.diffusionmodules.model import Decoder, Encoder

    settings = dict(double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
                    num_res_blocks=2, attn_resolutions=[], dropout=0.0)
    return torch.nn.ModuleDict(dict(
        encoder=Encoder(**settings), decoder=Decoder(**settings),
        quant_conv=torch.nn.Conv2d(8, 8, 1), post_quant_conv=torch.nn.Conv2d(4, 4, 1),
    ))


def open_clip(width, heads, layers):
    """The text half of OpenCLIP's models, which CompVis's code keeps of them."""
    import importlib.util

    package = types.ModuleType("open_clip")  # its __init__ would need torchvision
    package.__path__ = list(importlib.util.find_spec("open_clip").submodule_search_locations)
    vision = types.SimpleNamespace(FrozenBatchNorm2d=torch.nn.BatchNorm2d)
    with mock.patch.dict(sys.modules, {"open_clip": package, "torchvision.ops.misc": vision}):
        from open_clip.transformer import TextTransformer

        return TextTransformer(context_length=77, vocab_size=49408, width=width, heads=heads, layers=layers, output_dim=width)


def config(family, folder):
    return json.loads((ROOT / "convert/presets" / PRESETS[family] / folder / "config.json").read_text())


def openai_clip(family):
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config(family, "text_encoder")))
    return {"text_model." + name.removeprefix("text_model."): value for name, value in model.state_dict().items()}


def original(family):
    """The shapes of all weights of a single file."""
    with torch.device("meta"):
        parts = {"model.diffusion_model.": original_unet(family).state_dict(), "first_stage_model.": original_vae().state_dict()}
        if family == "sd1":
            parts["cond_stage_model.transformer."] = openai_clip(family)
        elif family == "sd2":
            parts["cond_stage_model.model."] = open_clip(1024, 16, 24).state_dict()
        else:
            parts["conditioner.embedders.0.transformer."] = openai_clip(family)
            parts["conditioner.embedders.1.model."] = open_clip(1280, 20, 32).state_dict()
    return {prefix + name: tuple(value.shape) for prefix, part in parts.items() for name, value in part.items()
            if not name.endswith(("attn_mask", "position_ids"))}


def converted(family, shapes):
    """What diffusers makes of a file in which each tensor is filled with its own number, in next to no memory."""
    file = {name: torch.full((1,), i, dtype=torch.int16).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    unet, vae = config(family, "unet"), config(family, "vae")
    out = {"unet": diffusers_converter.convert_ldm_unet_checkpoint(dict(file), unet),
           "vae": diffusers_converter.convert_ldm_vae_checkpoint(dict(file), vae)}
    with torch.device("meta"):
        models = {"unet": UNet2DConditionModel.from_config(unet), "vae": AutoencoderKL.from_config(vae)}
        for folder in ["text_encoder", "text_encoder_2"][: 1 + (family == "sdxl")]:
            settings = config(family, folder)
            models[folder] = getattr(transformers, settings["architectures"][0])(transformers.CLIPTextConfig(**settings))
    if family == "sd2":
        out["text_encoder"] = diffusers_converter.convert_open_clip_checkpoint(models["text_encoder"], file)
    else:
        out["text_encoder"] = diffusers_converter.convert_ldm_clip_checkpoint(file)
    if family == "sdxl":
        out["text_encoder_2"] = diffusers_converter.convert_open_clip_checkpoint(
            models["text_encoder_2"], file, prefix="conditioner.embedders.1.model.")

    sources = {}
    for folder, model in models.items():
        found = out[folder]
        if folder != "text_encoder_2" and folder.startswith("text"):
            want = {"text_model." + name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
        else:
            want = model.state_dict()
        assert found.keys() == want.keys(), (folder, found.keys() ^ want.keys())
        for name, value in found.items():
            assert value.shape == want[name].shape, (folder, name, value.shape, want[name].shape)
            sources.setdefault(int(value.flatten()[0]), []).append(f"{folder}/{name}")
    return sources


def main():
    (ROOT / "testdata/convert").mkdir(exist_ok=True)
    for family in PRESETS:
        shapes = original(family)
        sources = converted(family, shapes)
        lines = [f"{name}\t{','.join(map(str, shape))}\t{','.join(sources.get(i, []))}\n" for i, (name, shape) in enumerate(shapes.items())]
        path = ROOT / f"testdata/convert/{family}.names.gz"
        path.write_bytes(gzip.compress("".join(sorted(lines)).encode(), 9, mtime=0))
        print(f"{path.relative_to(ROOT)}: {len(lines)} tensors, {sum(map(len, sources.values()))} parameters, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
