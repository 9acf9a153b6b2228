"""Times `resalign bench` and the same work in PyTorch + diffusers in turn, and prints one Markdown table.

    make build && python scripts/bench_beside_pytorch.py bin/resalign --preset small --what forward,step,hvp

The configuration is the preset's own, as `resalign model new --config-only` writes it; weights are random, numbers float32.
Every figure comes from a process of its own; within a round the programs take turns. `step` trains all weights, `lora-step`
rank-4 factors on the attentions' q, k, v and out, `hvp` and `lora-hvp` are exact Hessian-vector products by the same
parameters, with attention written out, as fused kernels have no second derivative. --engine may be repeated: `go`, or
`xla:/path/to/plugin.so` for a program that `make xla` built; `CUDA=1` in the environment puts PyTorch on the GPU. Needs
torch and diffusers.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

# Batch of the measured work, as resalign bench has it.
BATCH = {"small": 8}


def measure(folder, what, batch, side, repeat, threads):
    """One kind of work in PyTorch: seconds of each repetition after one that is not counted, and the peak of memory."""
    import resource

    import torch
    import torch.nn.functional as F
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if os.environ.get("CUDA") else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder)).to(device)
    latents, noise = (torch.randn(batch, 4, side, side, device=device) for _ in range(2))
    context = torch.randn(batch, 77, unet.config.cross_attention_dim, device=device)
    timesteps = torch.randint(0, 1000, (batch,), device=device)
    added = None
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.randn(batch, 1280, device=device), "time_ids": torch.zeros(batch, 6, device=device)}

    def loss():
        return F.mse_loss(unet(latents, timesteps, context, added_cond_kwargs=added).sample, noise)

    parameters = list(unet.parameters())
    if what.startswith("lora"):
        unet.requires_grad_(False)
        parameters = []
        for name, module in unet.named_modules():
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                down = torch.nn.Parameter(0.01 * torch.randn(4, module.in_features, device=device))
                up = torch.nn.Parameter(0.01 * torch.randn(module.out_features, 4, device=device))
                module.register_forward_hook(lambda m, x, y, d=down, u=up: y + F.linear(F.linear(x[0], d), u))
                parameters += [down, up]
    optimizer = torch.optim.Adam(parameters, 1e-4)
    directions = [torch.randn_like(p) for p in parameters]

    def work():
        if what == "forward":
            with torch.no_grad():
                loss()
        elif what.endswith("step"):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        else:
            gradient = torch.autograd.grad(loss(), parameters, create_graph=True)
            torch.autograd.grad(gradient, parameters, grad_outputs=directions)
        if device.type == "cuda":
            torch.cuda.synchronize()

    if what.endswith("hvp"):
        unet.set_attn_processor(AttnProcessor())
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--preset", default="small")
    p.add_argument("--what", default="forward,step,hvp", help="forward, step, lora-step, hvp, lora-hvp")
    p.add_argument("--engine", action="append")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--repeat", type=int, default=3, help="of each process")
    p.add_argument("--threads", type=int, default=2, help="PyTorch's")
    p.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # the work and the folder, in a process of its own
    o = p.parse_args()
    name, _, size = o.preset.partition("-")
    side, batch = {"small": 32, "sdxl": 128}.get(name, 64), BATCH.get(name, 1)
    if size.isdigit():
        side = int(size) // 8
    if o.measure:
        measure(o.measure[1], o.measure[0], batch, side, o.repeat, o.threads)
        return

    engines = o.engine or ["go"]
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        subprocess.run([o.program, "model", "new", "--preset", name, "--config-only", "--out", model], check=True, capture_output=True)

        def ours(engine, what):
            command = [o.program, "bench", "--preset", o.preset, "--engine", engine, "--what", what, "--repeat", str(o.repeat), "--json"]
            r = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["results"][0]
            return r["best_s"], r["median_s"], r["peak_bytes"]

        def theirs(what):
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", what, model / "unet"]
            r = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            return min(r["seconds"]), statistics.median(r["seconds"]), r["peak"]

        columns = [e.split("/")[0].rstrip(":") for e in engines] + ["PyTorch"]
        print("| work |", " | ".join(columns), "|\n|" + "---|" * (1 + len(columns)))
        for what in o.what.split(","):
            rounds = [[ours(e, what) for e in engines] + [theirs(what)] for _ in range(o.rounds)]
            cells = []
            for column in zip(*rounds):
                best, median = min(c[0] for c in column), statistics.median(c[1] for c in column)
                cells.append(f"{best:.2f} ({median:.2f}) s, {max(c[2] for c in column) / 2**30:.1f} GiB")
            print(f"| {o.preset}, {what} |", " | ".join(cells), "|", flush=True)


main()
