"""CLIP and what is built on it, computed by torch, transformers and diffusers from random weights.

fixtures   writes testdata/vision/clip: a tiny model under the names of transformers and of OpenAI, a tiny safety checker, heads,
           pictures, and what they should give
full DIR   writes a ViT-L/14 (or, with --base, a ViT-B/32) with random weights into DIR, under both conventions of names, and its
           embeddings of pictures and prompts; RESALIGN_CLIP_FULL=DIR go test ./score/clip -run FullSize -v compares
"""

import argparse
import json
import math
import pickle
import random
from pathlib import Path

import numpy
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEADS = ("sexual", "violent", "disturbing", "hateful", "political")
PROMPTS = ["", "a photo of a red circle", "The Blue Square, on a green star!", "circle " * 90]


def randomise(module, seed, scale=1.0, half=True):
    """Gives all parameters values that make every part of the network matter, exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim >= 2 and "embedding" not in name:
            std = scale / math.sqrt(p[0].numel())
        elif "norm" in name and name.endswith("weight"):
            std = 0.2
        else:
            std = 0.3 * scale
        value = torch.randn(p.shape, generator=generator) * std + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        p.data = value.half().float() if half else value
    return module.eval()


def openai_names(state):
    """A state_dict of transformers' CLIPModel under the names of OpenAI's code."""
    out = {}
    plain = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    for here, there in (("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
                        ("text_model.final_layer_norm", "ln_final")):
        for kind in (".weight", ".bias"):
            plain[here + kind] = there + kind
    for here, there in plain.items():
        out[there] = state[here]
    out["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    for tower, there in (("vision_model", "visual.transformer.resblocks."), ("text_model", "transformer.resblocks.")):
        layer = 0
        while f"{tower}.encoder.layers.{layer}.mlp.fc1.weight" in state:
            here = f"{tower}.encoder.layers.{layer}."
            for kind in ("weight", "bias"):
                out[f"{there}{layer}.attn.in_proj_{kind}"] = torch.cat([state[f"{here}self_attn.{x}_proj.{kind}"] for x in "qkv"])
                for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                    out[f"{there}{layer}.{b}.{kind}"] = state[f"{here}{a}.{kind}"]
            layer += 1
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        out[name] = torch.tensor(value)
    return out


def picture(width, height, seed):
    """Blobs and noise: smooth enough to resemble a picture, with edges."""
    r = numpy.random.default_rng(seed)
    small = Image.fromarray(r.integers(0, 256, (5, 5, 3), dtype=numpy.uint8)).resize((width, height), Image.BICUBIC)
    noisy = numpy.asarray(small).astype(int) + r.integers(-20, 21, (height, width, 3))
    return Image.fromarray(numpy.clip(noisy, 0, 255).astype(numpy.uint8))


def squares(image, side):
    """The picture as each transform makes it."""
    standard = transforms.Compose([transforms.Resize(side, interpolation=InterpolationMode.BICUBIC), transforms.CenterCrop(side)])(image)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_normalize=False, do_rescale=False)
    processed = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(numpy.uint8)
    w, h = image.size
    short = min(w, h)
    top, left = (h - short) // 2, (w - short) // 2
    cropped = image.crop((left, top, left + short, top + short)).resize((side, side), Image.BICUBIC)
    return [torch.from_numpy(numpy.array(x)) for x in (standard, processed, cropped)]


def pixels(square):
    return transforms.Normalize(MEAN, STD)(square.permute(2, 0, 1).float() / 255)


def embed(model, images):
    batch = torch.stack([pixels(i) for i in images])
    with torch.no_grad():
        return model.visual_projection(model.vision_model(pixel_values=batch).pooler_output)


def embed_text(model, ids):
    with torch.no_grad():
        return model.text_projection(model.text_model(input_ids=ids).pooler_output)


def mhsc(width, hidden, seed):
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
    head.train()
    for _ in range(20):
        head(torch.randn(64, width) * 2 + 0.5)  # running statistics
    nn.init.normal_(head[3].weight, 1, 0.3)
    nn.init.normal_(head[3].bias, 0, 0.3)
    nn.init.normal_(head[4].weight, 0, 0.6)
    return head.eval()


def fixtures(out):
    out.mkdir(parents=True, exist_ok=True)
    config = CLIPConfig(
        text_config=dict(hidden_size=6, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, vocab_size=1514,
                         bos_token_id=1512, eos_token_id=1513, pad_token_id=1513),
        vision_config=dict(hidden_size=18, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8),
        projection_dim=16)
    model = randomise(CLIPModel(config), 1)
    model.half().save_pretrained(out / "model")
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in openai_names(model.state_dict()).items()}, out / "openai.pt")
    model.float()

    reference = {}
    images = [picture(*size, seed) for seed, size in enumerate([(45, 61), (33, 32), (80, 37), (35, 70)])]
    transformed = [squares(i, 32) for i in images]
    for i, image in enumerate(images):
        reference[f"picture.{i}"] = torch.from_numpy(numpy.array(image))
        for name, square in zip(("standard", "processor", "crop_first"), transformed[i]):
            reference[f"{name}.{i}"] = square
    standard = embed(model, [t[0] for t in transformed])
    reference["embeddings"] = standard
    for part in (model.vision_model, model.text_model):
        for layer in part.encoder.layers:
            layer.mlp.activation_fn = nn.GELU()
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "testdata/golden/tiny-sd/tokenizer")
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    reference["embeddings.gelu"] = embed(model, [t[0] for t in transformed])
    reference["text.gelu"] = embed_text(model, ids)
    model = CLIPModel.from_pretrained(out / "model", dtype=torch.float32).eval()
    reference["ids"] = ids.int()
    reference["text"] = embed_text(model, ids)

    torch.manual_seed(3)
    points = torch.randn(64, 16) * 1.5  # embeddings that spread more than those of a random tower
    reference["points"] = points
    with torch.no_grad():
        (out / "mhsc").mkdir(exist_ok=True)
        for i, name in enumerate(HEADS):
            head = mhsc(16, 20, 10 + i)
            torch.save(head.state_dict(), out / "mhsc" / f"{name}.pt")
            reference[f"mhsc.{name}"] = torch.sigmoid(head(points))[:, 0]

        prompts = torch.randn(2, 16)
        for protocol in (2, 4, 5):
            (out / f"prompts-{protocol}.p").write_bytes(pickle.dumps(prompts.half().numpy(), protocol=protocol))
        save_file({"prompts": prompts.half().float()}, out / "prompts.safetensors")
        prompts = prompts.half().float()
        unit = lambda x: x / x.norm(dim=-1, keepdim=True)
        reference["q16"] = (100.0 * unit(points) @ unit(prompts).T).softmax(-1)

        linear = nn.Linear(16, 1)
        torch.save(linear.state_dict(), out / "aesthetics-v1.pth")
        reference["aesthetics.v1"] = linear(unit(points))[:, 0]
        mlp = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(16, 24), nn.Dropout(0.2), nn.Linear(24, 12), nn.Dropout(0.2), nn.Linear(12, 8),
                                                     nn.Dropout(0.1), nn.Linear(8, 4), nn.Linear(4, 1))}).eval()
        torch.save(mlp.state_dict(), out / "aesthetics-v2.pth")
        reference["aesthetics.v2"] = mlp["layers"](unit(points))[:, 0]

        classifier = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 3, bias=False))
        save_file({"classifier." + k: v for k, v in classifier.state_dict().items()}, out / "classifier.safetensors")
        reference["classifier"] = classifier(unit(points)).softmax(-1)
    (out / "classifier.json").write_text(json.dumps(
        {"id2label": {"0": "neutral", "1": "drawing", "2": "explicit"}, "output": "softmax", "activation": "gelu", "normalised": True}) + "\n")

    x, y = unit(points[:40]).double(), unit(points[40:]).double()
    kernel = lambda a, b: torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / 200).mean()
    reference["cmmd"] = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    safety(out, model, points, [t[1] for t in transformed], reference)
    save_file({k: v.contiguous() for k, v in reference.items()}, out / "reference.safetensors", metadata={"prompts": json.dumps(PROMPTS)})


def safety(out, model, points, images, reference):
    """The checker on the same vision tower, with thresholds that split the points, and diffusers' decisions."""
    config = CLIPConfig(**{k: v for k, v in model.config.to_dict().items() if k in ("text_config", "vision_config", "projection_dim")})
    config._attn_implementation = "eager"
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.vision_model.load_state_dict(model.vision_model.state_dict())
    checker.visual_projection.load_state_dict(model.visual_projection.state_dict())
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    checker.concept_embeds.data, checker.special_care_embeds.data = draw(17, 16).half().float(), draw(3, 16).half().float()
    checker.concept_embeds_weights.data = (0.45 + 0.02 * draw(17)).half().float()
    checker.special_care_embeds_weights.data = (0.3 + 0.02 * draw(3)).half().float()
    # The pictures' embeddings have nearly one direction; concepts at a right angle to it tell them apart.
    with torch.no_grad():
        seen = embed(model, images)
        mean = nn.functional.normalize(seen.mean(0), dim=0)
        for rows in (checker.concept_embeds, checker.special_care_embeds):
            rows.data -= (rows.data @ mean)[:, None] * mean
        checker.concept_embeds.data[0] = (seen[0] - seen.mean(0)) * 10
        for rows in (checker.concept_embeds, checker.special_care_embeds):
            rows.data = rows.data.half().float()
        cosines = nn.functional.cosine_similarity(seen, checker.concept_embeds[:1]).sort().values
        checker.concept_embeds_weights.data[0] = cosines[1:3].mean().half().float()
    # Half precision, the names of today and those of transformers before version 5.
    state = {k: v.half().contiguous() for k, v in checker.state_dict().items()}
    (out / "safety_checker").mkdir(exist_ok=True)
    checker.config.architectures = ["StableDiffusionSafetyChecker"]
    checker.config.save_pretrained(out / "safety_checker")
    save_file({("vision_model." + k if k.startswith("vision_model.") else k): v for k, v in state.items()}, out / "safety_checker/model.safetensors")
    batch = torch.stack([pixels(i) for i in images])
    _, decided = checker(batch, [numpy.zeros(1) for _ in images])
    reference["safety.pictures"] = torch.tensor(decided)
    # The rule alone, on embeddings given to it.
    checker.vision_model = Given()
    checker.visual_projection = nn.Identity()
    many = draw(200, 16)
    _, decided = checker(many, [numpy.zeros(1) for _ in many])
    reference["safety.points"], reference["safety.decided"] = many, torch.tensor(decided)
    print("safety checker: ", sum(decided), "of 200 points,", reference["safety.pictures"].tolist())


class Given(nn.Module):
    def forward(self, x):
        return None, x


def full(out, base):
    out.mkdir(parents=True, exist_ok=True)
    if base:
        config = CLIPConfig()  # ViT-B/32
    else:
        config = CLIPConfig(
            text_config=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
            vision_config=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14),
            projection_dim=768)
    model = randomise(CLIPModel(config), 1, 0.7)
    model.half().save_pretrained(out / "model")
    torch.save(openai_names(model.state_dict()), out / "openai.pt")
    model.float()
    tokens = json.loads((ROOT / "testdata/golden/clip-tokens.json").read_text())
    images = [picture(*size, seed) for seed, size in enumerate([(512, 512), (640, 427), (225, 300)])]
    reference = {f"picture.{i}": torch.from_numpy(numpy.array(image)) for i, image in enumerate(images)}
    reference["embeddings"] = embed(model, [squares(i, config.vision_config.image_size)[0] for i in images])
    reference["text"] = embed_text(model, torch.tensor(tokens["ids"]))
    save_file(reference, out / "reference.safetensors", metadata={"prompts": json.dumps(tokens["prompts"])})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fixtures")
    whole = commands.add_parser("full")
    whole.add_argument("dir", type=Path)
    whole.add_argument("--base", action="store_true", help="ViT-B/32 instead of ViT-L/14")
    arguments = parser.parse_args()
    random.seed(0)
    if arguments.command == "fixtures":
        fixtures(ROOT / "testdata/vision/clip")
    else:
        full(arguments.dir, arguments.base)


if __name__ == "__main__":
    main()
