"""Small models with the real architectures of Stable Diffusion 1.x, 2.x and XL, and random weights."""

import json
import math
import zlib
from pathlib import Path

import numpy
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
MERGES = 120  # of the tokenizer's; the embedding table is most of a small text encoder


def sd1_full(vocabulary):
    """SD 1.x: four levels of two layers, convolutions as projections, one number of heads, PNDM.

    The scheduler's file says everything that its relatives understand differently when it is silent."""
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8, 8, 12), layers_per_block=2, norm_num_groups=2,
        cross_attention_dim=16, attention_head_dim=2,
    )
    return StableDiffusionPipeline(
        unet=unet, vae=autoencoder(layers_per_block=2), text_encoder=text_encoder("quick_gelu", 2, 16, vocabulary),
        tokenizer=vocabulary.tokenizer(),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ), dict(final_sigmas_type="zero", clip_sample=False)


def sd2(vocabulary):
    """SD 2.x: linear projections, heads by level, velocity, exact GELU, prompts filled up with "!"."""
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8, 12, 16), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=16, attention_head_dim=(1, 2, 3, 4), use_linear_projection=True,
    )
    return StableDiffusionPipeline(
        unet=unet, vae=autoencoder(layers_per_block=1), text_encoder=text_encoder("gelu", 2, 16, vocabulary),
        tokenizer=vocabulary.tokenizer(pad_token="!"),
        scheduler=DDIMScheduler(
            **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ), dict(final_sigmas_type="sigma_min", skip_prk_steps=True)


def sdxl_small(vocabulary):
    """SDXL: two text encoders, pooled embedding and picture sizes, several transformer blocks in an attention layer."""
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 12), layers_per_block=2, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 2, 3), use_linear_projection=True,
        cross_attention_dim=20, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )
    return StableDiffusionXLPipeline(
        unet=unet, vae=autoencoder(layers_per_block=1, scaling_factor=0.13025),
        text_encoder=text_encoder("quick_gelu", 2, 8, vocabulary), tokenizer=vocabulary.tokenizer(),
        text_encoder_2=text_encoder("gelu", 3, 12, vocabulary, projection_dim=10),
        tokenizer_2=vocabulary.tokenizer(pad_token="!"),
        scheduler=EulerDiscreteScheduler(**NOISE, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    ), dict(set_alpha_to_one=False, skip_prk_steps=True, clip_sample=False)


def autoencoder(**settings):
    """Two levels, so one latent stands for 2×2 pixels."""
    return AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **settings,
    )


def text_encoder(activation, layers, width, vocabulary, projection_dim=None):
    config = CLIPTextConfig(
        hidden_act=activation, num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width,
        num_attention_heads=2, vocab_size=vocabulary.size, bos_token_id=vocabulary.size - 2,
        eos_token_id=vocabulary.size - 1, pad_token_id=vocabulary.size - 1, projection_dim=projection_dim or width,
        attn_implementation="sdpa",  # the other one computes its softmax in float32
    )
    return (CLIPTextModelWithProjection if projection_dim else CLIPTextModel)(config)


class Vocabulary:
    """The first merges of a CLIP vocabulary."""

    def __init__(self, folder, merges=MERGES):
        header, *lines = (Path(folder) / "merges.txt").read_text().splitlines()
        tokens = list(json.loads((Path(folder) / "vocab.json").read_text()))
        self.merges = [header, *lines[:merges]]
        self.tokens = tokens[:512] + ["".join(m.split()) for m in lines[:merges]] + tokens[-2:]
        self.size = len(self.tokens)

    def tokenizer(self, pad_token="<|endoftext|>"):
        return CLIPTokenizer(
            vocab={token: i for i, token in enumerate(self.tokens)},
            merges=[tuple(m.split()) for m in self.merges[1:]], pad_token=pad_token, model_max_length=77,
        )

    def save(self, folder, pad_token):
        """Writes the files of published checkpoints; transformers now writes tokenizer.json in their place."""
        end = "<|endoftext|>"
        special = dict(bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=pad_token)
        for name, content in {
            "vocab.json": {token: i for i, token in enumerate(self.tokens)},
            "special_tokens_map.json": special,
            "tokenizer_config.json": dict(special, tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True),
        }.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n")
        (folder / "merges.txt").write_text("\n".join(self.merges) + "\n")
        (folder / "tokenizer.json").unlink(missing_ok=True)


def fill(module, seed):
    """Gives every parameter random numbers that its name and the seed determine: norms near one, biases that matter, and
    attention that looks somewhere."""
    for name, parameter in module.named_parameters():
        random = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
        normal = torch.from_numpy(random.standard_normal(tuple(parameter.shape)))
        if "embedding.weight" in name and "time" not in name:
            values = 0.5 * normal
        elif parameter.ndim > 1:
            gain = 1.6 if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")) else 0.9
            values = gain * normal / math.sqrt(parameter[0].numel())
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * normal
        else:
            values = 0.2 * normal
        parameter.data.copy_(values)
