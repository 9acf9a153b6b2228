"""Learnt embeddings (Textual Inversion) in diffusers.

check_embedding.py make MODEL          writes testdata/embedding/: an embedding, and what diffusers makes of a prompt with it
check_embedding.py read MODEL FILE     diffusers reads a file that this program wrote; prints the tokens of a prompt
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

FOLDER = Path("testdata/embedding")
PROMPT = "A photo of <ball>, and a red circle"


def load(model, file):
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(torch.float64)
    pipe.load_textual_inversion(str(file))
    return pipe


def main(what, model, file=FOLDER / "learned_embeds.safetensors"):
    if what == "make":
        FOLDER.mkdir(exist_ok=True)
        vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(7)) * 0.1
        save_file({"<ball>": vectors}, file)
        pipe = load(model, file)
        context, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        ids = pipe.tokenizer(pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)).input_ids
        save_file({"context": context[0].float(), "ids": torch.tensor(ids, dtype=torch.int32)}, FOLDER / "context.safetensors")
        print(ids)
        return
    [(word, vectors)] = load_file(file).items()
    pipe = load(model, file)
    prompt = f"a photo of {word}"
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids
    table = pipe.text_encoder.get_input_embeddings().weight
    new = [i for i in ids if i >= len(table) - len(vectors)]
    assert len(new) == len(vectors) and torch.equal(table[new], vectors.double()), "the vectors are not those of the file"
    print(f"{word}: {tuple(vectors.shape)}; {prompt!r} is {ids}")


main(*sys.argv[1:])
