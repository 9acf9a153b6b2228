"""Compares what `resalign plan` and `finetune --plan` say of memory with what the runs then take, and prints Markdown tables.

    make build && python scripts/check_plans.py bin/resalign --runs 3
    make xla && python scripts/check_plans.py bin/resalign --engine xla:PLUGIN --runs 1

Unlearning follows examples/tiny/recipe.toml by each method, fine-tuning its pictures; models have random weights. Each run
is a process of its own, whose peak memory the system tells. With --timed the plans are timed, and compared with the median of
the later half of each run's steps.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile

RECIPE = "examples/tiny/recipe.toml"
ALL, ESD, PICTURES = "trainable.parameters=all", "objective.harm=esd", "latents.from=pictures"
CONTRAST = ["objective.harm=contrast", "objective.retain=denoising"]
UNLEARNING = {  # what is set beside the method
    "resalign": [], "ascent": [], "esd": [ESD], "esd-x": [ESD, ALL, PICTURES], "esd-u": [ESD, ALL, PICTURES],
    "safegen": ["objective.harm=mosaic", ALL], "salun": ["objective.harm=relabel", ALL, "outer.weight_decay=0"],
    "advunlearn": [ESD, PICTURES, "trainable.parameters=text_encoder", "preview.every=0", "attack.warmup=2", "attack.steps=3"],
    "lcfdsd-ng": [*CONTRAST, ALL, "contrast.weight=5e-3"], "lcfdsd-lt": [*CONTRAST, ALL, "contrast.weight=5e-5"],
    "meta-unlearn": [ESD, PICTURES, ALL, "data.related.folder=examples/tiny/people"],
    "uce": ['edit.erase=["star"]'], "rece": ['edit.erase=["star"]'],
}
WORD = ["--placeholder", "<thing>", "--initializer", "person"]
TUNING = {  # model and flags
    "full": ("tiny", ["--method", "full"]), "LoRA": ("tiny", ["--method", "lora"]), "SVDiff": ("tiny", ["--method", "svdiff"]),
    "Custom Diffusion": ("tiny", ["--method", "custom", *WORD]),
    "Textual Inversion": ("tiny", ["--method", "textual-inversion", *WORD]),
    "DreamBooth": ("tiny", ["--method", "dreambooth", "--instance-prompt", "a *s person"]),
    "full, with the text encoder": ("tiny", ["--method", "full", "--train-text-encoder"]),
    "small, full": ("small", ["--method", "full"]),
    "small, full, with the text encoder": ("small", ["--method", "full", "--train-text-encoder"]),
    "small, full, bfloat16": ("small", ["--method", "full", "--compute", "bfloat16"]),
    "small, full, checkpoints": ("small", ["--method", "full", "--gradient-checkpointing"]),
    "small, LoRA": ("small", ["--method", "lora"]),
    "sd14 at 256, LoRA": ("sd14", ["--method", "lora"]),
}
SIDE = {"tiny": "0", "small": "256", "sd14": "256"}


def run(command):
    """Runs a command and returns what it printed and its peak memory in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        out.seek(0), err.seek(0)
        text, message = out.read().decode(), err.read().decode()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {child.returncode}: {message[-600:]}")
    return text, 1024 * usage.ru_maxrss


def step_seconds(folder):
    """The median of the later half of a run's steps, in seconds, by its log."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = [e["fields"]["seconds"] for e in events if e["kind"] == "step"]
    return statistics.median(steps[len(steps) // 2:])


def row(name, plan, real, folders, timed):
    p = json.loads(run(plan + ["--timed"] * timed)[0])
    measured = [run([*real, "--out", folder])[1] for folder in folders]
    mib = [f"{x / 2**20:.0f}" for x in (p["peak_bytes"], p["peak_low_bytes"], p["peak_high_bytes"])]
    off = p["peak_bytes"] / (sum(measured) / len(measured)) - 1
    times = ""
    if timed:
        times = f" {p['step_s']:.2f} | {', '.join(f'{step_seconds(folder):.2f}' for folder in folders)} |"
    print(f"| {name} | {mib[0]} ({mib[1]} to {mib[2]}) | {', '.join(f'{x / 2**20:.0f}' for x in measured)} | {100 * off:+.0f} % |{times}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--engine", default="go")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--steps", default="6", help="of a fine-tuning")
    p.add_argument("--timed", action="store_true")
    p.add_argument("--only", default="", help="a regular expression for names of rows")
    o = p.parse_args()
    wanted = re.compile(o.only)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        print("| MiB | planned (lowest to highest course) | measured | planned against the mean |" + " step planned, s | measured |" * o.timed)
        print("|---|---|---|---|" + "---|---|" * o.timed)
        for method, settings in UNLEARNING.items():
            if not wanted.search(method):
                continue
            flags = [x for s in [f"method={method}", *settings] for x in ("--set", s)]
            row(method, [o.program, "plan", RECIPE, *flags, "--engine", o.engine, "--json"],
                [o.program, "unlearn", RECIPE, *flags, "--engine", o.engine], [folder / f"{method}-{i}" for i in range(o.runs)], o.timed)
        for number, (name, (model, flags)) in enumerate(TUNING.items()):
            if not wanted.search(name):
                continue
            path = folder / model
            if not path.exists():
                run([o.program, "model", "new", "--preset", model, "--out", path])
            flags = ["--model", path, "--data", "examples/tiny/people", "--steps", o.steps, "--resolution", SIDE[model], *flags, "--engine", o.engine]
            row(name, [o.program, "finetune", "--plan", *flags, "--json"],
                [o.program, "finetune", *flags], [folder / f"tuned-{number}-{i}" for i in range(o.runs)], o.timed)


if __name__ == "__main__":
    main()
