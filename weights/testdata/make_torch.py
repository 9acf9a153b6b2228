"""Writes torch.pt, torch-legacy.pt and torch.safetensors: the same small tensors as PyTorch 2.15 stores them.

Run in this folder with PyTorch and safetensors installed:  python make_torch.py
"""

import collections

import torch
from safetensors.torch import save_file

torch.manual_seed(0)
base = torch.randn(6, 4)
tensors = {
    "unet.weight": torch.nn.Parameter(base),
    "unet.transposed": base.t(),
    "unet.every_second_row": base[1::2],
    "unet.half": torch.randn(3, 2).half(),
    "unet.bfloat": torch.randn(3, 2).bfloat16(),
    "unet.double": torch.randn(2, dtype=torch.float64),
    "unet.scalar": torch.tensor(0.5),
    "unet.empty": torch.zeros(0, 3),
    "position_ids": torch.arange(7).expand(1, -1),
    "int32": torch.tensor([1, -2], dtype=torch.int32),
    "int16": torch.tensor([3, -4], dtype=torch.int16),
    "int8": torch.tensor([5, -6], dtype=torch.int8),
    "uint8": torch.tensor([7, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
}
nested = {"state_dict": collections.OrderedDict(), "epoch": 3, "lr": 1e-4, "note": "text", "losses": [1.0, 2.0]}
for name, value in tensors.items():
    nested["state_dict"][name] = value
nested["state_dict"]._metadata = {"": {"version": 1}}
torch.save(nested, "torch.pt")
torch.save(nested, "torch-legacy.pt", _use_new_zipfile_serialization=False)
save_file({name: value.detach().contiguous() for name, value in tensors.items()}, "torch.safetensors")
