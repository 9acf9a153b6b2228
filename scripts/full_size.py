#!/usr/bin/env python3
"""Makes the reference of a whole published architecture with random weights, for `resalign verify`.

    full_size.py --program bin/resalign sdxl --out fullsize

`resalign model new` writes the model. diffusers computes the UNet's prediction, its mean squared error
against noise, and the gradient by every parameter, in float64. Of each gradient its norm and a sketch are kept. The same
in float32, by the UNet as diffusers loads it, tells how far float32 arithmetic is from that.

A layer's weights are widened to float64 while it computes, and a gradient is reduced as soon as it is known, so that
neither weights nor gradients of 20 GB are ever in memory. README.md beside this file says more.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import double

TIMESTEPS = [37, 871]
TOKENS = 77
SEED = 1  # of weights and signs
BUCKETS = 16  # numbers in a sketch
CHUNK = 1 << 22  # elements that are reduced at a time
WHOLE = ("conv_in.", "conv_out.")  # gradients that are kept whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="an architecture that `resalign model new` knows, such as sd14 or sdxl")
    parser.add_argument("--program", default="bin/resalign", help="default: bin/resalign")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the reference goes into OUT/PRESET, and a model that is there is used again")
    parser.add_argument("--side", type=int, default=32, help="of the latents; default 32")
    options = parser.parse_args()
    out = options.out / options.preset
    if not (out / "model").exists():
        command = [options.program, "model", "new", "--preset", options.preset, "--seed", str(SEED), "--out", str(out / "model")]
        subprocess.run(command, check=True)
    make(out, options.side)


def make(out, side):
    """Writes the reference directory of a model that there is."""
    unet, names = load(out / "model/unet")
    count = sum(p.numel() for p in unet.parameters())
    scheduler = diffusers.DDIMScheduler.from_pretrained(out / "model", subfolder="scheduler", clip_sample=False)
    inputs = batch(unet.config, side, scheduler)
    single = evaluate(unet, inputs, torch.float32)
    widen(unet)
    wide = evaluate(unet, inputs, torch.float64)
    compare(f"{out.name}: float32 of diffusers against its float64", single, wide, names)
    store(out, inputs, wide, names)
    print(f"{out.name}: {count} parameters, latents of {side} x {side}, peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB with the mapped weights", flush=True)


def load(folder):
    """The UNet of a pipeline directory, its weights mapped from the file and so in memory only while they are used."""
    config = diffusers.UNet2DConditionModel.load_config(folder)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    unet.load_state_dict(weights, strict=True, assign=True)  # strict: none is missing, none unused
    if any(p.is_meta for p in (*unet.parameters(), *unet.buffers())):
        sys.exit(f"{folder}: not every parameter has a value")
    return unet.requires_grad_(True), [name for name, _ in unet.named_parameters()]


def batch(config, side, scheduler):
    """What the UNet is evaluated on: numbers of numpy's generator, rounded to float32 as they are stored."""
    size = len(TIMESTEPS)

    def draw(seed, *shape):
        return torch.from_numpy(numpy.random.default_rng(seed).standard_normal(shape)).float()

    latents, noise = draw(1, size, config.in_channels, side, side), draw(2, size, config.in_channels, side, side)
    timesteps = torch.tensor(TIMESTEPS)
    noisy = scheduler.add_noise(latents.double(), noise.double(), timesteps).float()
    inputs = {"latents": latents, "noise": noise, "noisy": noisy, "timesteps": timesteps, "context": draw(3, size, TOKENS, config.cross_attention_dim)}
    if config.addition_embed_type == "text_time":
        pixels = 8.0 * side
        inputs["pooled"] = draw(4, size, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        inputs["time_ids"] = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels], [2 * pixels, pixels, 8, 16, pixels, pixels]])
    return inputs


def evaluate(unet, inputs, dtype):
    """Prediction, loss, and what is kept of the gradient by each parameter."""
    kept = {}
    hooks = []
    for name, p in unet.named_parameters():
        def reduce(parameter, name=name):
            kept[name] = reduced(name, parameter.grad)
            parameter.grad = None
        hooks.append(p.register_post_accumulate_grad_hook(reduce))
    for name, module in unet.named_modules():
        if isinstance(module, Streamed):
            module.report = lambda part, gradient, name=name: kept.update({f"{name}.{part}": reduced(f"{name}.{part}", gradient)})
    wide = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    added = {"text_embeds": wide["pooled"], "time_ids": wide["time_ids"]} if "pooled" in wide else None
    prediction = unet(wide["noisy"], wide["timesteps"], encoder_hidden_states=wide["context"], added_cond_kwargs=added).sample
    assert prediction.dtype == dtype, f"the UNet computes in {prediction.dtype}"
    loss = torch.mean((prediction - wide["noise"]) ** 2)
    loss.backward()
    for hook in hooks:
        hook.remove()
    gc.collect()
    return {"pred": prediction.detach(), "loss": loss.detach().reshape(1), "gradient": kept}


def reduced(name, gradient):
    """Norm and sketch of a gradient in float64, and itself where it is kept."""
    flat = gradient.detach().reshape(-1)
    square, sketch = 0.0, numpy.zeros(BUCKETS)
    start = stream(SEED, "sketch", name)
    for begin in range(0, flat.numel(), CHUNK):
        part = flat[begin : begin + CHUNK].numpy().astype(numpy.float64)
        square += part @ part
        signed = numpy.zeros(-(-part.size // BUCKETS) * BUCKETS)
        signed[: part.size] = part * signs(start, begin, part.size)
        sketch += signed.reshape(-1, BUCKETS).sum(axis=0)
    return square**0.5, sketch, gradient.detach().clone() if name.startswith(WHOLE) else None


def stream(seed, *keys):
    """The state of the program's random.New(seed, keys...): FNV-1a of 128 bits, mixed."""
    data = b"S" + seed.to_bytes(8, "little")
    for key in keys:
        data += b"s" + len(key).to_bytes(8, "little") + key.encode()
    state = 0x6C62272E07BB014262B821756295C58D
    for byte in data:
        state = (state ^ byte) * 0x0000000001000000000000000000013B % 2**128
    total = state.to_bytes(16, "big")
    low, high = (numpy.array([int.from_bytes(half, "little")], numpy.uint64) for half in (total[:8], total[8:]))
    return mix(low ^ mix(high))[0]


def mix(z):
    """The output function of SplitMix64 on an array."""
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def signs(start, begin, count):
    """Signs of elements begin to begin+count, begin a multiple of 64: the bits of the stream's words, lowest first; a 1 is minus."""
    index = numpy.arange(begin // 64 + 1, (begin + count + 63) // 64 + 1, dtype=numpy.uint64)
    words = mix(start + index * numpy.uint64(0x9E3779B97F4A7C15))
    bits = numpy.unpackbits(words.astype("<u8").view(numpy.uint8), bitorder="little")[:count]
    return 1.0 - 2.0 * bits


class Layer(torch.autograd.Function):
    """A linear or convolutional layer in float64 whose weight stays in float32, and whose weight's gradient is reported at once."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return layer.apply_to(x, weight.double())

    @staticmethod
    def backward(ctx, v):
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_(ctx.needs_input_grad[0])
            weight = weight.detach().double().requires_grad_(True)
            y = ctx.layer.apply_to(x, weight)
        wanted = [weight, x] if x.requires_grad else [weight]
        gradient, *rest = torch.autograd.grad(y, wanted, v)
        ctx.layer.report("weight", gradient)
        return (rest[0] if rest else None), None, None


class Streamed(torch.nn.Module):
    """Stands for a layer of diffusers' UNet. The bias is its parameter; the weight is not, so that it stays as it is in the file."""

    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]  # in a list: not a submodule
        self.bias = layer.bias
        self.report = None

    def apply_to(self, x, weight):
        layer = self.layer[0]
        if isinstance(layer, torch.nn.Linear):
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x):
        y = Layer.apply(x, self.layer[0].weight, self)
        if self.bias is None:
            return y
        return y + (self.bias if isinstance(self.layer[0], torch.nn.Linear) else self.bias[:, None, None])


def widen(unet):
    """Makes a UNet compute in float64: layers with large weights as they go, all other parameters at once."""
    double.enable()
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (torch.nn.Linear, torch.nn.Conv2d)):
                setattr(module, name, Streamed(child))
    unet.double()


def compare(what, got, want, names):
    """Prints relative errors as `resalign verify` measures them: small gradients against a thousandth of the mean square."""

    def relative(a, b):
        return ((a.double() - b).norm() / b.norm()).item()

    norms = numpy.array([want["gradient"][n][0] for n in names])
    ours = numpy.array([got["gradient"][n][0] for n in names])
    apart = numpy.array([numpy.linalg.norm(got["gradient"][n][1] - want["gradient"][n][1]) for n in names])
    floor = numpy.maximum(norms, 1e-3 * numpy.sqrt(numpy.mean(norms**2)))
    print(f"{what}: prediction {relative(got['pred'], want['pred']):.1e}, loss {relative(got['loss'], want['loss']):.1e}, gradients: norms "
          f"{max(abs(ours - norms) / floor):.1e}, sketches {max(apart / floor):.1e} ({names[numpy.argmax(apart / floor)]}), all as one "
          f"{numpy.linalg.norm(apart) / numpy.linalg.norm(norms):.1e}", flush=True)


def store(out, inputs, result, names):
    gradient = result["gradient"]
    tensors = inputs | {"pred": result["pred"], "loss": result["loss"]}
    tensors["grad_norms"] = torch.tensor([gradient[n][0] for n in names])
    tensors["grad_sketches"] = torch.from_numpy(numpy.stack([gradient[n][1] for n in names]))
    tensors |= {"grad." + n: gradient[n][2] for n in names if gradient[n][2] is not None}
    stored = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    for name, t in stored.items():
        if not torch.isfinite(t).all():
            sys.exit(f"{out}: {name} has values that are not finite")
    save_file(stored, out / "unet.safetensors", {"sketch_seed": json.dumps(SEED)})
    (out / "unet-model.names.json").write_text(json.dumps(names) + "\n")
    case = {"kind": "unet-sketches", "model": "model", "tensors": "unet.safetensors"}
    (out / "index.json").write_text(json.dumps({"cases": [case]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
