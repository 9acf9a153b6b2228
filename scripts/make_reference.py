#!/usr/bin/env python3
"""Makes the reference directories that `resalign verify` takes, with diffusers and transformers in float64.

    make_reference.py sd1-full sd2 sdxl-small        small random models, into testdata/references/
    make_reference.py --load MODEL --out DIR         the same tensors for a model that there is

README.md beside this file says more.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file

import double
import tiny_models

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "testdata/golden/tiny-sd/tokenizer"
PROMPTS = ["a photo of a red circle", "an astronaut riding a horse"]
STEPS = 10
SAMPLERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpmsolver": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
MODELS = {
    "sd1-full": (tiny_models.sd1_full, list(SAMPLERS)),
    "sd2": (tiny_models.sd2, ["ddim", "dpmsolver", "euler"]),
    "sdxl-small": (tiny_models.sdxl_small, ["ddim", "dpmsolver", "euler"]),
}
# What a scheduler's file means by silence: what diffusers 0.18 took it to mean, which wrote the published ones.
SILENCE = {
    "ddim": {"set_alpha_to_one": False, "clip_sample": False},
    "pndm": {"skip_prk_steps": True},
    "dpmsolver": {"final_sigmas_type": "sigma_min"},
    "euler": {},
}
# A share of the parameters whose derivatives are kept whole; of the others, only the norms are.
WHOLE = ("conv_in.", "conv_out.", "time_embedding.linear_1.", "add_embedding.linear_2.", "mid_block.attentions.0.transformer_blocks.0.attn2.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"small models to make: {', '.join(MODELS)}")
    parser.add_argument("--load", type=Path, metavar="MODEL", help="a diffusers pipeline directory to make the reference of")
    parser.add_argument("--out", type=Path, help="the directory to write (default: one in testdata/references)")
    parser.add_argument("--lora", type=Path, help="with --load: an adapter that, on --base, must predict what MODEL predicts")
    parser.add_argument("--base", type=Path, help="with --lora: the pipeline directory that the adapter is for")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"unknown models {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if bool(options.names) == bool(options.load):
        parser.error("name small models to make, or a model to --load")
    if options.load and not options.out or bool(options.lora) != bool(options.base):
        parser.error("--load needs --out, and --lora and --base go together")
    for model in filter(None, (options.load, options.base)):
        if not (model / "model_index.json").is_file():
            parser.error(f"{model} is not a diffusers directory: it holds no model_index.json")
    if options.load and (options.out / "model").exists():
        parser.error(f"{options.out} holds a reference already; name a new directory")
    torch.set_num_threads(1)
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    double.enable()
    for name in options.names:
        architecture, samplers = MODELS[name]
        out = (options.out or ROOT / "testdata/references") / name
        make_model(architecture, out)
        make_cases(load(out / "model"), out, samplers)
        print(f"{out}: {size(out)} bytes")
    if options.load:
        shutil.copytree(options.load, options.out / "model")
        pipe = load(options.out / "model")
        make_cases(pipe, options.out, list(SAMPLERS))
        if options.lora:
            compare_adapter(pipe, options.base, options.lora)


def make_model(architecture, out):
    """Writes a small model as diffusers saves it, in half precision: its files are small, and the numbers stay exact."""
    if out.exists():
        shutil.rmtree(out)
    vocabulary = tiny_models.Vocabulary(VOCABULARY)
    pipe, samplers = architecture(vocabulary)
    for i, name in enumerate(("unet", "vae", "text_encoder", "text_encoder_2")):
        if module := getattr(pipe, name, None):
            tiny_models.fill(module, seed=i)
    pipe.to(torch.float16).save_pretrained(out / "model")
    vocabulary.save(out / "model/tokenizer", "!" if pipe.tokenizer.pad_token == "!" else "<|endoftext|>")
    # What the samplers other than the model's own read from its configuration.
    path = out / "model/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | samplers, indent=2, sort_keys=True) + "\n")


def load(folder):
    """Loads a pipeline, and refuses one with missing or unused weights."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **optional(folder))
    for name in ("unet", "vae"):
        module = getattr(pipe, name)
        _, report = type(module).from_pretrained(folder / name, output_loading_info=True)
        if report["missing_keys"] or report["unexpected_keys"]:
            sys.exit(f"{folder / name}: the weights do not fit: {report}")
    for name in ("text_encoder", "text_encoder_2"):
        if module := getattr(pipe, name, None):
            _, report = type(module).from_pretrained(folder / name, output_loading_info=True)
            extra = [k for k in report["unexpected_keys"] if not k.endswith("position_ids")]
            if report["missing_keys"] or extra:
                sys.exit(f"{folder / name}: the weights do not fit: {report}")
            module.set_attn_implementation("sdpa")
    pipe.to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.set_attn_processor(AttnProcessor())  # plain products and softmax can be differentiated twice
    return pipe


def optional(folder):
    """Components that Stable Diffusion pipelines may lack."""
    index = json.loads((folder / "model_index.json").read_text())
    if index["_class_name"] != "StableDiffusionPipeline":
        return {"add_watermarker": False}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def make_cases(pipe, out, samplers):
    conditions = pipeline_case(pipe, out, samplers)
    pipe.scheduler = sampler("ddim", out / "model")
    unet_case(pipe, out, conditions)
    cases = [{"kind": kind, "model": "model", "tensors": f"{kind}.safetensors"} for kind in ("pipeline", "unet")]
    (out / "index.json").write_text(json.dumps({"cases": cases}, indent=2) + "\n")


def sampler(name, folder):
    """The sampler as the configuration of a model's own scheduler has it."""
    settings = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    return SAMPLERS[name].from_config(SILENCE[name] | {k: v for k, v in settings.items() if not k.startswith("_")})


def draw(seed, *shape):
    """Standard normal numbers, rounded to float32 as they are stored."""
    values = numpy.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).float().double()


@torch.no_grad()
def pipeline_case(pipe, out, samplers):
    """Token ids, text embeddings, autoencoder and pictures. Returns what the prompts condition the UNet on."""
    xl = hasattr(pipe, "text_encoder_2")
    config, scale = pipe.unet.config, pipe.vae_scale_factor
    side = config.sample_size
    tensors = {}
    for name in ("tokenizer", "tokenizer_2")[: 2 if xl else 1]:
        tokenizer = getattr(pipe, name)
        ids = tokenizer(PROMPTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        tensors["token_ids" + name.removeprefix("tokenizer")] = ids.input_ids
    if xl:
        cond, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
        sizes = torch.tensor([[side * scale, side * scale, 0, 0, side * scale, side * scale]] * len(PROMPTS), dtype=torch.float64)
        tensors |= {"cond": cond, "pooled": pooled, "time_ids": sizes}
    else:
        cond, uncond = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        tensors |= {"cond": cond, "uncond": uncond[:1]}
    conditions = {k: tensors[k].float().double() for k in ("cond", "pooled", "time_ids") if k in tensors}

    picture = torch.tanh(draw(1, 1, 3, side * scale, side * scale)).float().double()
    moments = pipe.vae.encode(picture).latent_dist
    z = draw(2, 1, pipe.vae.config.latent_channels, side, side)
    tensors |= {"vae.image": picture, "vae.mean": moments.mean, "vae.logvar": moments.logvar}
    tensors |= {"vae.z": z, "vae.decoded": pipe.vae.decode(z).sample}

    noise = draw(3, len(PROMPTS), config.in_channels, side, side)
    guidance = 5.0 if xl else 7.5
    tensors["init_noise"] = noise
    for name in samplers:
        pipe.scheduler = sampler(name, out / "model")
        latents = pipe(PROMPTS, latents=noise.clone(), num_inference_steps=STEPS, guidance_scale=guidance, output_type="latent").images
        tensors[name + ".latents"] = latents
        if name == samplers[0]:  # one shows how latents become pictures
            tensors[name + ".image"] = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    metadata = {"prompts": PROMPTS, "steps": STEPS, "guidance_scale": guidance, "scaling_factor": pipe.vae.config.scaling_factor}
    write(out / "pipeline.safetensors", tensors, metadata)
    return conditions


def unet_case(pipe, out, conditions):
    """Prediction and loss of the UNet, the gradient by every parameter, and the Hessian applied to the gradient."""
    unet, side = pipe.unet, pipe.unet.config.sample_size
    latents, noise = (draw(seed, len(PROMPTS), unet.config.in_channels, side, side) for seed in (4, 5))
    timesteps = torch.tensor([37, 871])
    noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
    target = pipe.scheduler.get_velocity(latents, noise, timesteps) if velocity(pipe) else noise
    names, parameters = zip(*unet.named_parameters())
    prediction = predict(unet, noisy, timesteps, conditions)
    loss = torch.mean((prediction - target) ** 2)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.autograd.grad(gradient, parameters, [g.detach() for g in gradient])
    tensors = {
        "latents": latents, "noise": noise, "noisy": noisy, "timesteps": timesteps, "pred": prediction,
        "loss": loss.reshape(1), "grad_norms": norms(gradient), "hvp_of_grad_norms": norms(product),
    }
    if velocity(pipe):
        tensors["target"] = target  # otherwise it is the noise
    for name, g, h in zip(names, gradient, product):
        if name.startswith(WHOLE):
            tensors |= {"grad." + name: g, "hvp_of_grad." + name: h}
    write(out / "unet.safetensors", tensors)
    (out / "unet-model.names.json").write_text(json.dumps(names) + "\n")


def velocity(pipe):
    return pipe.scheduler.config.prediction_type == "v_prediction"


def predict(unet, noisy, timesteps, conditions):
    added = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]} if "pooled" in conditions else None
    return unet(noisy, timesteps, encoder_hidden_states=conditions["cond"], added_cond_kwargs=added).sample


def norms(tensors):
    return torch.stack([t.norm() for t in tensors])


def write(path, tensors, metadata=None):
    """Writes tensors, floating-point ones in float32; the fields of the metadata become JSON text."""
    stored = {}
    for name, t in tensors.items():
        stored[name] = (t.detach().float() if t.is_floating_point() else t).contiguous().clone()
        if not torch.isfinite(stored[name]).all():
            sys.exit(f"{path}: {name} has values that are not finite")
    save_file(stored, path, {k: json.dumps(v) for k, v in metadata.items()} if metadata else None)


@torch.no_grad()
def compare_adapter(pipe, base, lora):
    """Loads an adapter into its base and compares the prediction with that of the pipeline it was merged into."""
    adapted = load(base)
    before = adapted.unet
    side = before.config.sample_size
    x, times = draw(6, 1, before.config.in_channels, side, side), torch.tensor([500])
    conditions = {"cond": draw(7, 1, 77, before.config.cross_attention_dim)}
    plain = predict(before, x, times, conditions)
    adapted.load_lora_weights(lora.parent, weight_name=lora.name)
    adapted.to(torch.float64)
    with_adapter = predict(adapted.unet, x, times, conditions)
    merged = predict(pipe.unet, x, times, conditions)
    error = ((with_adapter - merged).norm() / merged.norm()).item()
    change = ((merged - plain).norm() / plain.norm()).item()
    print(f"adapter: relative difference {error:.2g} to the merged model, which is {change:.2g} from its base")
    if not error <= 1e-4 or not error <= 1e-2 * change:
        sys.exit(f"{lora} on {base} does not predict what the merged model predicts")


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


if __name__ == "__main__":
    main()
