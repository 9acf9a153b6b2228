"""LoRA adapters as diffusers and PEFT understand them: fixtures for the tests, and a comparison of adapter files.

make     writes testdata/lora: adapters with random factors in several namings, and the changes of weights that diffusers
         and PEFT compute from them in float64
compare  loads two adapters into a model and compares the changes of all its weights
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

# Layers of every kind; SDXL's UNet as kohya calls them, in the original code of latent diffusion.
XL = {
    "lora_unet_input_blocks_0_0": "unet.conv_in",
    "lora_unet_time_embed_2": "unet.time_embedding.linear_2",
    "lora_unet_label_emb_0_0": "unet.add_embedding.linear_1",
    "lora_unet_input_blocks_1_0_in_layers_2": "unet.down_blocks.0.resnets.0.conv1",
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_0_emb_layers_1": "unet.down_blocks.1.resnets.0.time_emb_proj",
    "lora_unet_input_blocks_4_1_proj_in": "unet.down_blocks.1.attentions.0.proj_in",
    "lora_unet_input_blocks_5_1_transformer_blocks_0_attn2_to_k": "unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
    "lora_unet_input_blocks_7_0_skip_connection": "unet.down_blocks.2.resnets.0.conv_shortcut",
    "lora_unet_input_blocks_8_1_transformer_blocks_1_ff_net_0_proj": "unet.down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj",
    "lora_unet_middle_block_0_out_layers_3": "unet.mid_block.resnets.0.conv2",
    "lora_unet_middle_block_1_transformer_blocks_1_attn1_to_out_0": "unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0",
    "lora_unet_middle_block_2_in_layers_2": "unet.mid_block.resnets.1.conv1",
    "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q": "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_5_1_proj_out": "unet.up_blocks.1.attentions.2.proj_out",
    "lora_unet_output_blocks_8_0_in_layers_2": "unet.up_blocks.2.resnets.2.conv1",
    "lora_unet_out_2": "unet.conv_out",
    "lora_te1_text_model_encoder_layers_1_self_attn_q_proj": "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
    "lora_te1_text_model_encoder_layers_1_self_attn_out_proj": "text_encoder.text_model.encoder.layers.1.self_attn.out_proj",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "lora_te2_text_model_encoder_layers_2_self_attn_out_proj": "text_encoder_2.text_model.encoder.layers.2.self_attn.out_proj",
    "lora_te2_text_model_encoder_layers_0_mlp_fc2": "text_encoder_2.text_model.encoder.layers.0.mlp.fc2",
    "lora_te2_text_projection": "text_encoder_2.text_projection",
}
SD1 = [
    "unet.down_blocks.0.resnets.1.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "unet.down_blocks.1.attentions.0.proj_in",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.down_blocks.2.attentions.1.transformer_blocks.0.ff.net.2",
    "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.down_blocks.3.resnets.0.conv_shortcut",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "unet.mid_block.resnets.1.time_emb_proj",
    "unet.up_blocks.0.upsamplers.0.conv",
    "unet.up_blocks.2.attentions.2.transformer_blocks.0.attn1.to_v",
    "unet.up_blocks.3.attentions.1.proj_out",
    "text_encoder.text_model.encoder.layers.0.self_attn.k_proj",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc2",
]


def pipeline(model):
    index = json.loads((Path(model) / "model_index.json").read_text())
    kind = StableDiffusionXLPipeline if "XL" in index["_class_name"] else StableDiffusionPipeline
    return kind.from_pretrained(model, torch_dtype=torch.float64)


def parts(pipe):
    return {name: getattr(pipe, name) for name in COMPONENTS if getattr(pipe, name, None) is not None}


def canonical(component, module):
    """A module's name as in published checkpoints; transformers 5 has no module text_model in CLIPTextModel."""
    if component != "unet" and not module.startswith(("text_model.", "text_projection")):
        module = "text_model." + module
    return f"{component}.{module}"


def weights_of(pipe):
    """The shapes of all weights that an adapter can change."""
    return {
        canonical(component, name.removesuffix(".weight")): tuple(parameter.shape)
        for component, model in parts(pipe).items()
        for name, parameter in model.named_parameters()
        if name.endswith(".weight") and parameter.ndim in (2, 4)
    }


def changes(pipe):
    """What the adapters on a pipeline add to each weight, as PEFT computes it."""
    found = {}
    for component, model in parts(pipe).items():
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                name = name.removeprefix("base_model.model.")
                found[canonical(component, name)] = sum(module.get_delta_weight(a) for a in module.active_adapters).detach()
    return found


def normals(name, *shape):
    random = numpy.random.default_rng([3, zlib.crc32(name.encode())])
    return torch.from_numpy(random.standard_normal(shape)).float()


def factors(name, shape, rank):
    """Random factors of a layer of the given weight shape."""
    out, inputs, *kernel = shape
    ones = [1] * len(kernel)
    return normals(name + " down", rank, inputs, *kernel) / math.sqrt(inputs), normals(name + " up", out, rank, *ones)


def kohya(names, shapes):
    """An adapter in kohya's naming, with ranks of one to three, and various alphas.

    As diffusers 0.42 reads such files, one rank holds in a text encoder, and where alphas differ, attentions and text
    encoders have the most frequent one."""
    tensors = {}
    for i, (name, module) in enumerate(names.items()):
        rank = 1 + i % 3 if name.startswith("lora_unet_") else 2
        tensors[name + ".lora_down.weight"], tensors[name + ".lora_up.weight"] = factors(name, shapes[module], rank)
        usual = not name.startswith("lora_unet_") or "_attn" in name or i % 2
        tensors[name + ".alpha"] = torch.tensor(1.5 if usual else 0.5 * (i + 1))
    return tensors


def mangled(module):
    prefix, rest = module.split(".", 1)
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[prefix] + rest.replace(".", "_")


def save(tensors, path):
    save_file({k: v.float().contiguous() for k, v in tensors.items()}, path)


def make_kohya(out, name, model, names):
    pipe = pipeline(model)
    save(kohya(names, weights_of(pipe)), out / f"{name}.safetensors")
    pipe.load_lora_weights(out / f"{name}.safetensors")
    got = changes(pipe)
    assert got.keys() == set(names.values()), got.keys() ^ set(names.values())
    save(got, out / f"{name}.changes.safetensors")


def make_peft(out, model):
    """PEFT's own folder, and the same adapter from diffusers' save_lora_weights, with its configuration as metadata."""
    pipe = pipeline(model)
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=[m.removeprefix("unet.") for m in SD1 if m.startswith("unet.")],
        rank_pattern={r"attn\d\.to_[kv]": 4, "conv_shortcut": 1}, alpha_pattern={"ff.net.2": 5, r"proj_(in|out)": 0.5},
    )
    inject_adapter_in_model(config, pipe.unet)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(normals(name, *parameter.shape).double())
    got = changes(pipe)
    state = {k: v.float().contiguous() for k, v in get_peft_model_state_dict(pipe.unet, adapter_name="default").items()}
    folder = out / "peft"
    folder.mkdir()
    save({"base_model.model." + k: v for k, v in state.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2) + "\n")
    save(got, out / "peft.changes.safetensors")
    type(pipe).save_lora_weights(
        out, unet_lora_layers=state, weight_name="diffusers.safetensors",
        unet_lora_adapter_metadata={k: saved[k] for k in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")},
    )


def make_tucker(out):
    """A convolution as down 1×1, a core 3×3 between, up 1×1. The change is what the three make of unit impulses."""
    module, rank, inputs, outputs = "mid_block.resnets.0.conv1", 3, 12, 12
    name = "lora_unet_" + module.replace(".", "_")
    down, mid, up = normals("d", rank, inputs, 1, 1), normals("m", rank, rank, 3, 3), normals("u", outputs, rank, 1, 1)
    save({name + ".lora_down.weight": down, name + ".lora_mid.weight": mid, name + ".lora_up.weight": up,
          name + ".alpha": torch.tensor(1.5)}, out / "tucker.safetensors")
    change = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float64)
    conv = torch.nn.functional.conv2d
    for i in range(inputs):
        impulse = torch.zeros(1, inputs, 3, 3, dtype=torch.float64)
        impulse[0, i, 1, 1] = 1
        response = conv(conv(conv(impulse, down.double()), mid.double(), padding=1), up.double())
        change[:, i] = 1.5 / rank * response[0].flip(-2, -1)  # conv2d correlates
    save({"unet." + module: change}, out / "tucker.changes.safetensors")


def make(out):
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    references = ROOT / "testdata" / "references"
    make_kohya(out, "kohya-xl", references / "sdxl-small" / "model", XL)
    make_kohya(out, "kohya-sd1", references / "sd1-full" / "model", {mangled(m): m for m in SD1})
    make_peft(out, references / "sd1-full" / "model")
    make_tucker(out)


def with_peft(model, folder):
    """A model with the adapter in PEFT's folder. From transformers 5 on, the encoder of CLIPTextModel is no module text_model."""
    if hasattr(model, "encoder"):
        with tempfile.TemporaryDirectory() as renamed:
            state = load_file(folder / "adapter_model.safetensors")
            save_file({k.replace(".text_model.", "."): v for k, v in state.items()}, Path(renamed) / "adapter_model.safetensors")
            config = (folder / "adapter_config.json").read_text().replace("text_model.", "")
            (Path(renamed) / "adapter_config.json").write_text(config)
            return PeftModel.from_pretrained(model, renamed).double()
    return PeftModel.from_pretrained(model, folder).double()


def load(model, path):
    """The changes that a file or a PEFT folder makes."""
    pipe = pipeline(model)
    path = Path(path)
    if path.is_dir():
        for component in parts(pipe):
            if (path / component).exists():
                setattr(pipe, component, with_peft(getattr(pipe, component), path / component))
    else:
        pipe.load_lora_weights(path)
    return changes(pipe)


def compare(model, first, second):
    a, b = load(model, first), load(model, second)
    if a.keys() != b.keys():
        sys.exit(f"different layers: {sorted(a.keys() ^ b.keys())}")
    worst = max(((a[k] - b[k]).abs().max() / a[k].abs().max()).item() for k in a)
    print(f"{len(a)} layers, largest relative difference {worst:.1e}")
    if not worst <= 1e-6:
        sys.exit("the adapters differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("--out", type=Path, default=ROOT / "testdata" / "lora")
    c = commands.add_parser("compare")
    c.add_argument("--model", required=True)
    c.add_argument("first")
    c.add_argument("second")
    a = parser.parse_args()
    if a.command == "make":
        make(a.out)
    else:
        compare(a.model, a.first, a.second)


if __name__ == "__main__":
    main()
