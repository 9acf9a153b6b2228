"""Makes unlearn/testdata/edits.safetensors: cross-attention keys and values of testdata/golden/tiny-sd after the
closed-form edits of UCE and RECE, from their equations with explicit inverses, in float64. Run from the repository root."""

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

ROOT = "testdata/golden/tiny-sd/"
ERASE, REPLACE, KEEP = ["a red ball", "nudity"], "a cat", ["a green ball"]
LAMBDA, A, B, RHO, EPOCHS = 0.1, 1.0, 0.1, 0.1, 2

tokenizer = CLIPTokenizer.from_pretrained(ROOT + "tokenizer")
encoder = CLIPTextModel.from_pretrained(ROOT + "text_encoder").double()
weights = load_file(ROOT + "unet/diffusion_pytorch_model.safetensors")
original = {n: w.double() for n, w in weights.items() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
width = next(iter(original.values())).shape[1]


@torch.no_grad()
def embed(text):
    """The tokens' embeddings, and the place of the last word."""
    t = tokenizer([text], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    return encoder(t.input_ids)[0][0], int(t.attention_mask.sum()) - 2


def edit(layers, pairs, keep):
    right = LAMBDA * torch.eye(width).double() + sum(A * c.T @ c for c, _ in pairs) + sum(B * k.T @ k for k in keep)
    left = LAMBDA * torch.eye(width).double() + sum(A * s.T @ c for c, s in pairs) + sum(B * k.T @ k for k in keep)
    return {n: w @ left @ torch.inverse(right) for n, w in layers.items()}


replace, at = embed(REPLACE)
keep = [embed(text)[0] for text in [""] + KEEP]
pairs = []
for text in ERASE:
    tokens, last = embed(text)
    n = len(tokens) - max(last, at)
    pairs.append((tokens[last : last + n], replace[at : at + n]))
layers = edit(original, pairs, keep)
out = {f"uce.{n}": w for n, w in layers.items()}
for _ in range(EPOCHS):
    gram = sum(w.T @ w for w in layers.values()) + RHO * torch.eye(width).double()
    cross = sum(layers[n].T @ original[n] for n in layers)
    derived = [(embed(text)[0] @ (torch.inverse(gram) @ cross).T, replace) for text in ERASE]
    layers = edit(layers, derived, keep)
out |= {f"rece.{n}": w for n, w in layers.items()}
save_file({n: w.float().contiguous() for n, w in out.items()}, "unlearn/testdata/edits.safetensors")
