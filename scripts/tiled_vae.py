"""Writes testdata/vae-tiles.safetensors: latents of 1×4×24×40, and what diffusers' AutoencoderKL of testdata/golden/tiny-sd
makes of them, whole and in tiles of 32 pixels; then the moments of that tiled picture, in tiles.

Needs torch, diffusers and safetensors.

    python scripts/tiled_vae.py
"""

import pathlib

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

data = pathlib.Path(__file__).resolve().parent.parent / "testdata"
vae = AutoencoderKL.from_pretrained(data / "golden/tiny-sd/vae").eval()
assert (vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor) == (32, 16, 0.25)
torch.manual_seed(0)
latents = torch.randn(1, 4, 24, 40)
with torch.no_grad():
    z = latents / vae.config.scaling_factor
    whole = vae.decode(z).sample
    vae.enable_tiling()
    picture = vae.decode(z).sample
    moments = vae.encode(picture).latent_dist.parameters
save_file(
    {k: v.contiguous() for k, v in {"latents": latents, "whole": whole, "picture": picture, "moments": moments}.items()},
    data / "vae-tiles.safetensors",
)
print("whole and tiled differ by at most", float((whole - picture).abs().max()), "of a range", float(whole.min()), float(whole.max()))
