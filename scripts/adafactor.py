"""Writes testdata/adafactor.json: steps of transformers' Adafactor in float64, which the optimizer's test compares with."""

import json
import sys

import torch
from transformers.optimization import Adafactor

RATES = [0.03125, 0.046875, 0.015625, 0.03125, 0.046875]


def walk(shape, decay, scale):
    generator = torch.Generator().manual_seed(7)
    draw = lambda: torch.randn(shape, generator=generator, dtype=torch.float64)
    p = torch.nn.Parameter(draw())
    optimizer = Adafactor([p], lr=1, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=decay)
    start, steps = p.detach().flatten().tolist(), []
    for rate in RATES:
        p.grad = draw() * scale
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        steps.append({"rate": rate, "grad": p.grad.flatten().tolist(), "param": p.detach().flatten().tolist()})
    return {"shape": shape, "decay": decay, "start": start, "steps": steps}


cases = {
    "vector": walk([5], 0.1, 1),
    "matrix": walk([3, 4], 0, 1e-3),
    "matrix, decay": walk([4, 2], 0.1, 10),
    "kernel": walk([2, 3, 3, 2], 0.1, 1),
    "kernel of 1x1": walk([2, 3, 1, 1], 0, 1),
}
path = sys.argv[1] if len(sys.argv) > 1 else "testdata/adafactor.json"
with open(path, "w") as f:
    json.dump(cases, f)
