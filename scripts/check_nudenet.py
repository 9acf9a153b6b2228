#!/usr/bin/env python3
"""Compares package score/nudenet with the public package nudenet, on pictures that are drawn here and any of your own.

The public package runs on every picture; what the network was given, what it gave and what was made of it are written to a
folder, and `go test ./score/nudenet -run Reference` holds the program's against them. Needs nudenet, onnx, onnxruntime, pillow,
and torch for the pictures that are raised until the network sees something in them.

    check_nudenet.py --out /tmp/nudenet [--weights 640m.onnx] [--resolution 640] [--pictures FOLDER] [--raised 16]
"""

import argparse
import json
import os
import pathlib
import subprocess
import time

import cv2
import numpy as np
import nudenet.nudenet as package
import onnx
import onnxruntime
from onnx import numpy_helper
from PIL import Image, ImageDraw

SIZES = [(320, 320), (640, 640), (512, 512), (333, 517), (517, 333), (1, 1), (1, 400), (400, 1), (31, 33), (100, 75), (768, 512),
         (511, 767), (1280, 720), (640, 96), (57, 640), (321, 320), (319, 320), (1024, 1024), (200, 199), (300, 900)]


def face(draw, rng, width, height):
    """A cartoon head: ellipse, eyes, mouth, hair."""
    r = rng.uniform(0.1, 0.35) * min(width, height)
    x, y = rng.uniform(r, max(r + 1, width - r)), rng.uniform(r, max(r + 1, height - r))
    skin = tuple(int(v) for v in np.array([224, 180, 150]) * rng.uniform(0.4, 1.1) // 1 % 256)
    draw.ellipse([x - r, y - 1.2 * r, x + r, y + 1.4 * r], fill=(60, 40, 20))
    draw.ellipse([x - 0.8 * r, y - r, x + 0.8 * r, y + r], fill=skin)
    for side in (-1, 1):
        draw.ellipse([x + side * 0.35 * r - 0.12 * r, y - 0.3 * r, x + side * 0.35 * r + 0.12 * r, y - 0.1 * r], fill=(20, 20, 60))
    draw.arc([x - 0.4 * r, y + 0.1 * r, x + 0.4 * r, y + 0.6 * r], 20, 160, fill=(160, 30, 40), width=max(1, int(r / 12)))


def drawn(rng, i):
    """One innocent picture: noise, a gradient, shapes or cartoon faces, of an odd size."""
    width, height = SIZES[i % len(SIZES)]
    if i % 4 == 0:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colours = rng.uniform(0, 255, (3, 3))
    base = across[..., None] * colours[0] + down[..., None] * colours[1] + 0.3 * colours[2]
    picture = Image.fromarray(np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 7)) if i % 4 > 1 else 0):
        box = np.sort(rng.uniform(-0.1, 1.1, (2, 2)), axis=0) * [width, height]
        shape = [draw.rectangle, draw.ellipse][int(rng.integers(2))]
        shape([tuple(box[0]), tuple(box[1])], fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    for _ in range(int(rng.integers(1, 4)) if i % 4 == 3 else 0):
        face(draw, rng, width, height)
    return picture


def in_torch(path):
    """The network as a function of torch tensors, so that it can be differentiated."""
    import torch
    import torch.nn.functional as F

    graph = onnx.load(path).graph
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}

    def run(x):
        v = dict(weights)
        v[graph.input[0].name] = x
        for n in graph.node:
            a = {p.name: onnx.helper.get_attribute_value(p) for p in n.attribute}
            i = [v[name] if name else None for name in n.input]
            ints = lambda t: [int(k) for k in t.reshape(-1)]
            op = n.op_type
            if op == "Conv":
                y = F.conv2d(i[0], i[1], i[2] if len(i) > 2 else None, a.get("strides", [1, 1]), a.get("pads", [0] * 4)[:2])
            elif op == "MaxPool":
                y = F.max_pool2d(i[0], a["kernel_shape"], a["strides"], a["pads"][:2])
            elif op == "Resize":
                y = F.interpolate(i[0], scale_factor=[float(k) for k in i[2][2:]], mode="nearest")
            elif op == "Split":
                y = torch.split(i[0], ints(i[1]), a.get("axis", 0))
            elif op == "Slice":
                y = i[0]
                for k, (start, end) in zip(ints(i[3]), zip(ints(i[1]), ints(i[2]))):
                    y = y.narrow(k, start, min(end, y.shape[k]) - start)
            elif op == "Unsqueeze":
                y = i[0]
                for k in ints(i[1]):
                    y = y.unsqueeze(k)
            elif op == "Cast":
                y = i[0].to({1: torch.float32, 7: torch.int64}[a["to"]])
            else:
                y = {
                    "Sigmoid": lambda: torch.sigmoid(i[0]), "Mul": lambda: i[0] * i[1], "Add": lambda: i[0] + i[1],
                    "Sub": lambda: i[0] - i[1], "Div": lambda: i[0] / i[1], "Concat": lambda: torch.cat(i, a["axis"]),
                    "Softmax": lambda: torch.softmax(i[0], a["axis"]), "Transpose": lambda: i[0].permute(a["perm"]),
                    "Reshape": lambda: i[0].reshape([i[0].shape[j] if k == 0 else k for j, k in enumerate(ints(i[1]))]),
                    "Shape": lambda: torch.tensor(i[0].shape), "Gather": lambda: i[0][i[1]],
                    "Constant": lambda: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
                    "Range": lambda: torch.arange(i[0].item(), i[1].item(), i[2].item(), dtype=i[0].dtype),
                    "Expand": lambda: i[0].expand(ints(i[1])),
                    "ConstantOfShape": lambda: torch.full(ints(i[0]), numpy_helper.to_array(a["value"]).item()),
                }[op]()
            for name, result in zip(n.output, y if isinstance(y, tuple) else (y,)):
                v[name] = result
        return v[graph.output[0].name]

    return run


def raised(path, count, side, rng):
    """Noise and drawings, changed in small steps until the network sees faces, feet and bellies in them."""
    import torch

    network, out = in_torch(path), []
    wanted = [1, 12, 9, 7, 8, 10, 11, 13]
    while len(out) < count:
        shapes = [(side, side), (side, 3 * side // 4), (3 * side // 4, side), (2 * side, 2 * side)]
        batch = []
        for k in range(min(4, count - len(out))):
            start = drawn(rng, 4 * int(rng.integers(50)) + k).resize((side, side))
            batch.append(np.asarray(start, np.float32)[..., ::-1] / 255)
        x = torch.from_numpy(np.stack(batch).transpose(0, 3, 1, 2).copy())
        mask = torch.ones_like(x)
        for k in range(len(batch)):
            width, height = shapes[k]
            mask[k, :, min(height, side):, :] = 0
            mask[k, :, :, min(width, side):] = 0
        x = (0.2 + 0.6 * x).requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.03)
        for _ in range(16):
            y = network(x.clamp(0, 1) * mask)
            loss = 0
            for k in range(len(batch)):
                for label in (wanted[len(out) % 8], wanted[(len(out) // 4 + k) % 8]):
                    loss = loss - torch.logit(y[k, 4 + label].clamp(1e-7, 1 - 1e-4)).topk(12).values.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        pixels = ((x.clamp(0, 1) * mask).detach().numpy().transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)[..., ::-1]
        for k in range(len(batch)):
            width, height = shapes[k]
            picture = Image.fromarray(pixels[k][:min(height, side), :min(width, side)].copy())
            out.append(picture.resize((width, height), Image.NEAREST))
    return out


def synthetic(rng, session_places, side):
    """Outputs as a network might give them, with clusters of overlapping boxes, and what the package makes of them."""
    cases = []
    for i in range(60):
        width, height = SIZES[i % len(SIZES)]
        places = session_places
        output = np.zeros((1, 22, places), np.float32)
        output[0, :2] = rng.uniform(-20, side + 20, (2, places))
        output[0, 2:4] = rng.uniform(0, side / 2, (2, places))
        output[0, 4:] = rng.uniform(0, 0.19, (18, places))
        hot = rng.choice(places, 40 + i, replace=False)
        centres = rng.uniform(0, side, (2, 6))
        which = rng.integers(0, 6, len(hot))
        output[0, :2, hot] = (centres[:, which] + rng.normal(0, side / 40, (2, len(hot)))).T
        output[0, 2:4, hot] = rng.uniform(side / 10, side / 4, (len(hot), 2))
        output[0, 4 + rng.integers(0, 18, len(hot)), hot] = np.round(rng.uniform(0.18, 1, len(hot)), 2)  # with ties
        if i % 10 == 9:
            output[0, 2:4] = 0  # boxes without area
        pad = max(width, height)
        found = package._postprocess([output], pad - width, pad - height, 1, 1, width, height, side, side)
        cases.append({"width": width, "height": height, "detections": found, "output": output[0]})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--weights", default=os.path.join(os.path.dirname(package.__file__), "320n.onnx"))
    parser.add_argument("--resolution", default=320, type=int)
    parser.add_argument("--count", default=200, type=int, help="pictures to draw")
    parser.add_argument("--raised", default=16, type=int, help="pictures to raise by gradients")
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder of pictures to compare on as well")
    parser.add_argument("--go", default="go", help="the go command")
    parser.add_argument("--engine", default="go", help="the engine to test")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    side = o.resolution

    pictures = [drawn(rng, i) for i in range(o.count)]
    if o.raised:
        pictures += raised(o.weights, o.raised, side, rng)
    if o.pictures:
        for path in sorted(o.pictures.iterdir()):
            pictures.append(Image.open(path).convert("RGB"))

    detector = package.NudeDetector(o.weights, inference_resolution=side)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(o.weights, options)
    reference, places, boxes = {"resolution": side, "pictures": [], "outputs": []}, 0, 0
    with open(o.out / "outputs.bin", "wb") as outputs, open(o.out / "blobs.bin", "wb") as blobs:
        for i, picture in enumerate(pictures):
            name = f"{i:04}.png"
            picture.save(o.out / name)
            blob = package._read_image(str(o.out / name), side)[0]
            output = session.run(None, {session.get_inputs()[0].name: blob})[0]
            found = detector.detect(str(o.out / name))
            blob[0].transpose(1, 2, 0).copy().tofile(blobs)
            output.tofile(outputs)
            places, boxes = output.shape[2], boxes + len(found)
            reference["pictures"].append({"file": name, "detections": found})
        for case in synthetic(rng, places, side):
            case.pop("output").tofile(outputs)
            reference["outputs"].append(case)
    reference["places"] = places
    (o.out / "reference.json").write_text(json.dumps(reference))
    print(f"nudenet, opencv {cv2.__version__}, onnxruntime {onnxruntime.__version__}: {len(pictures)} pictures, {boxes} boxes")

    for size in (1, 4):
        x = np.repeat(blob, size, 0)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: x})
            times.append(time.perf_counter() - start)
        print(f"onnxruntime, 2 threads, batches of {size}: {size / min(times):.1f} pictures/s at best")

    environment = dict(os.environ, RESALIGN_NUDENET=os.path.abspath(o.weights), RESALIGN_NUDENET_REFERENCE=str(o.out.resolve()),
                       RESALIGN_TEST_ENGINE=o.engine)
    tags = ["-tags", "xla"] if o.engine != "go" else []
    root = pathlib.Path(__file__).resolve().parent.parent
    subprocess.run([o.go, "test", *tags, "./score/nudenet", "-run", "Reference", "-bench", "Detect", "-benchtime", "50x", "-count", "1", "-v"],
                   cwd=root, env=environment, check=True)


if __name__ == "__main__":
    main()
