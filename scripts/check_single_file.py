#!/usr/bin/env python3
"""Compares `resalign convert` with diffusers: the program's single files, read by StableDiffusionPipeline.from_single_file,
must be the models they were made from; and the directories that the program makes of single files must be what diffusers
and transformers load, tokenizers included.

    check_single_file.py [--program bin/resalign] [--full sd1 sd2 sdxl]

Says that it is skipped where torch and diffusers are not installed.
"""

import argparse
import gzip
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "sd1-full": "testdata/references/sd1-full/model",
    "sd2": "testdata/references/sd2/model",
    "sdxl-small": "testdata/references/sdxl-small/model",
}
PARTS = ["unet", "vae", "text_encoder", "text_encoder_2"]

try:
    import diffusers
    import torch
    import transformers
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(0)


def pipeline_class(folder):
    return getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])


def same(what, got, want):
    """Two pipelines have the same tensors, bit for bit."""
    compared = 0
    for part in PARTS:
        a, b = getattr(got, part, None), getattr(want, part, None)
        assert (a is None) == (b is None), f"{what}: {part} is in one of the two only"
        if a is None:
            continue
        a, b = a.state_dict(), b.state_dict()
        assert a.keys() == b.keys(), f"{what}: {part}: {a.keys() ^ b.keys()}"
        for name in a:
            assert torch.equal(a[name], b[name]), f"{what}: {part}.{name} differs"
        compared += len(a)
    print(f"{what}: {compared} tensors are the same")


def picture(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(torch.float32)
    settings = dict(num_inference_steps=2, height=32, width=32, output_type="np", generator=torch.Generator().manual_seed(1))
    return pipeline("a photo of a red circle", **settings).images


def convert(program, *arguments):
    subprocess.run([program, "convert", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def both_ways(program, name, model, folder):
    file = folder / "single.safetensors"
    convert(program, model, file)
    pipeline = pipeline_class(model)
    want = pipeline.from_pretrained(model, dtype=torch.float16)
    got = pipeline.from_single_file(file, config=str(model), dtype=torch.float16, local_files_only=True)
    same(f"{name}, read by from_single_file", got, want)
    assert (picture(got) == picture(want)).all(), f"{name}: the pictures differ"

    convert(program, file, folder / "back", "--base", model)
    same(f"{name}, there and back again", pipeline.from_pretrained(folder / "back", dtype=torch.float16), want)

    checkpoint = folder / "single.ckpt"
    torch.save({"state_dict": load_file(file), "epoch": 1, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}, checkpoint)
    convert(program, checkpoint, folder / "from-ckpt", "--base", model)
    same(f"{name}, from .ckpt", pipeline.from_pretrained(folder / "from-ckpt", dtype=torch.float16), want)

    unet = folder / "unet.pt"
    torch.save(want.unet.state_dict(), unet)
    convert(program, unet, folder / "from-unet", "--base", model)
    same(f"{name}, from a UNet alone", pipeline.from_pretrained(folder / "from-unet", dtype=torch.float16), want)
    convert(program, model, folder / "unet.safetensors", "--to", "unet")
    missing = want.unet.load_state_dict(load_file(folder / "unet.safetensors"))
    assert not missing.missing_keys and not missing.unexpected_keys
    convert(program, model, folder / "bf16", "--dtype", "bf16")
    want_bf16 = pipeline.from_pretrained(model, dtype=torch.float16).to(torch.bfloat16)
    same(f"{name}, as bf16", pipeline.from_pretrained(folder / "bf16", dtype=torch.bfloat16), want_bf16)


def variants(program, model, folder):
    """Half-precision names, shards and pickles, as diffusers writes them."""
    want = diffusers.StableDiffusionPipeline.from_pretrained(model, dtype=torch.float16)
    for what, (settings, made) in {
        "fp16 variant": (dict(variant="fp16"), "unet/diffusion_pytorch_model.fp16.safetensors"),
        "shards": (dict(max_shard_size="60KB"), "unet/diffusion_pytorch_model.safetensors.index.json"),
        "pickles": (dict(safe_serialization=False), "unet/diffusion_pytorch_model.bin"),
    }.items():
        saved = folder / what
        want.save_pretrained(saved, **settings)
        assert (saved / made).exists(), list((saved / "unet").iterdir())
        convert(program, saved, folder / (what + " converted"))
        same(what, diffusers.StableDiffusionPipeline.from_pretrained(folder / (what + " converted"), dtype=torch.float16), want)


def tokenizer(folder, padding):
    """A tokenizer that the program wrote by itself."""
    prompts = ["a photo of an astronaut riding a horse on mars", "Ünïcode naïve café, 日本語 🎨", "don't   stop -- 123,456"]
    reference = transformers.CLIPTokenizer.from_pretrained(ROOT / "testdata/golden/clip-vocab")
    written = transformers.CLIPTokenizer.from_pretrained(folder)
    assert len(written) == 49408 and written.model_max_length == 77 and written.pad_token == padding, written
    assert (written.bos_token_id, written.eos_token_id, written.unk_token_id) == (49406, 49407, 49407), written
    for prompt in prompts:
        assert written(prompt).input_ids == reference(prompt).input_ids, prompt
        padded = written(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert len(padded) == 77 and padded[-1] == {"!": 0, "<|endoftext|>": 49407}[padding], padded


def full(program, family, folder):
    """A single file as large as the published one, of zeros that take no room, becomes a directory that needs no base."""
    header, end = {"__metadata__": {"modelspec.prediction_type": "epsilon"}}, 0
    for line in gzip.decompress((ROOT / f"testdata/convert/{family}.names.gz").read_bytes()).decode().splitlines():
        name, shape, _ = line.split("\t")
        shape = [int(n) for n in shape.split(",") if n]
        header[name] = dict(dtype="F16", shape=shape, data_offsets=[end, end := end + 2 * math.prod(shape)])
    text = json.dumps(header).encode()
    file = folder / f"{family}.safetensors"
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(f.tell() + end)
    out = folder / family
    convert(program, file, out)
    print(f"{family}: {end / 2**30:.1f} GiB converted, peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB with mapped pages")
    index = json.loads((out / "model_index.json").read_text())
    for part, pair in index.items():
        if isinstance(pair, list) and pair[1] and part in PARTS:
            library = diffusers if pair[0] == "diffusers" else transformers
            kind = getattr(library, pair[1])
            with torch.device("meta"):
                model = kind.from_config(kind.load_config(out / part)) if library is diffusers else kind(kind.config_class.from_pretrained(out / part))
            weights = out / part / ("model.safetensors" if library is transformers else "diffusion_pytorch_model.safetensors")
            with safe_open(weights, "pt") as f:
                got = {name.removeprefix("text_model."): list(f.get_slice(name).get_shape()) for name in f.keys()}
            want = {name.removeprefix("text_model."): list(value.shape) for name, value in model.state_dict().items()}
            want.pop("embeddings.position_ids", None)
            assert got == want, f"{family}: {part}: {got.keys() ^ want.keys()}"
        elif isinstance(pair, list) and part.startswith("tokenizer"):
            tokenizer(out / part, "!" if family == "sd2" or part == "tokenizer_2" else "<|endoftext|>")
        elif part == "scheduler":
            assert getattr(diffusers, pair[1]).from_pretrained(out / part).config.prediction_type == "epsilon"
    print(f"{family}: diffusers finds all parameters, the tokenizers are CLIP's")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "bin/resalign", type=Path)
    parser.add_argument("--full", nargs="*", default=[], metavar="FAMILY", help="also at full size: sd1, sd2 (2 GiB each on the disk), sdxl (7 GiB)")
    arguments = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in arguments.full:
        with tempfile.TemporaryDirectory() as temporary:
            full(arguments.program, family, Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        for name, model in MODELS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            both_ways(arguments.program, name, ROOT / model, folder)
        variants(arguments.program, ROOT / MODELS["sd1-full"], Path(temporary))


if __name__ == "__main__":
    main()
