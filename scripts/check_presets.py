"""Counts the presets' parameters and floating-point operations in diffusers and transformers, without memory for weights.

    go build -o bin/resalign ./cmd/resalign && python scripts/check_presets.py bin/resalign

The configurations are those that `resalign model new --config-only` writes, so this also tells whether diffusers can read
them. Fails if a count is not the published one, or if the operations are not what `resalign bench` counts.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

VAE, CLIP_L, CLIP_H, CLIP_G = 83_653_863, 123_060_480, 340_387_840, 694_659_840
SD1, SD2, SDXL = (859_520_964, VAE, CLIP_L), (865_910_724, VAE, CLIP_H), (2_567_463_684, VAE, CLIP_L, CLIP_G)
PUBLISHED = {
    "sd14": SD1, "sd15": SD1, "dreamshaper8": SD1, "sd20": SD2, "sd21": SD2, "sd20-base": SD2, "sd21-base": SD2,
    "sdxl": SDXL, "anything-xl": SDXL, "pony": SDXL, "small": None, "tiny": None,
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def text_encoder(folder):
    config = CLIPTextConfig.from_pretrained(folder)
    with_projection = config.architectures == ["CLIPTextModelWithProjection"]
    with torch.device("meta"):
        return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)


def operations(unet):
    """Operations of one pass over one sample of the size that the UNet was trained on."""
    c, side = unet.config, unet.config.sample_size
    with torch.device("meta"):
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if c.addition_embed_type else None
        inputs = torch.empty(1, 4, side, side), torch.empty(1), torch.empty(1, 77, c.cross_attention_dim)
    with FlopCounterMode(display=False) as counter:
        unet(*inputs, added_cond_kwargs=added)
    return counter.get_total_flops()


def main():
    program = sys.argv[1]
    for name, published in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model"
            subprocess.run([program, "model", "new", "--preset", name, "--config-only", "--out", model], check=True, capture_output=True)
            with torch.device("meta"):
                unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet"))
                vae = AutoencoderKL.from_config(AutoencoderKL.load_config(model / "vae"))
            texts = [text_encoder(model / f) for f in ("text_encoder", "text_encoder_2") if (model / f).exists()]
        counts = tuple(parameters(m) for m in (unet, vae, *texts))
        assert published is None or counts == published, (name, counts, published)
        print(f"{name}: {counts} parameters, {operations(unet):.6e} operations a pass")
        if published is None:
            command = [program, "bench", "--preset", name, "--batch", "1", "--what", "forward", "--repeat", "1", "--json"]
            ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["forward_flops"]
            assert ours == operations(unet), (name, ours)


main()
