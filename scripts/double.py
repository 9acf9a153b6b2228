"""Lets diffusers compute in float64 throughout.

Its schedulers and its time embedding ask for float32 by name, whatever the precision of the model. For them alone, that
name is made to mean float64.
"""

import math
import types

import numpy
import torch
from diffusers.models import embeddings
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_pndm,
)


class _Wide(types.ModuleType):
    """A module as it is, but for its float32."""

    def __init__(self, module):
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


def time_embedding(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
    """diffusers' get_timestep_embedding in float64; angles of some hundred radians have few digits left in float32."""
    half = embedding_dim // 2
    exponent = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    angles = scale * timesteps.double()[:, None] * torch.exp(-math.log(max_period) * exponent)
    parts = [torch.cos(angles), torch.sin(angles)] if flip_sin_to_cos else [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts, dim=-1)


def enable():
    """Changes the modules of diffusers that this process has loaded."""
    for module in (scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_discrete, scheduling_pndm):
        module.torch = _Wide(torch)
        if hasattr(module, "np"):
            module.np = _Wide(numpy)
    times = torch.tensor([0.0, 7.0, 993.0])
    for flip in (False, True):
        theirs = embeddings.get_timestep_embedding(times, 32, flip, 0)
        ours = time_embedding(times, 32, flip, 0)
        assert (ours - theirs).abs().max() < 1e-3, "the time embedding of this diffusers is another one"
    embeddings.get_timestep_embedding = time_embedding
