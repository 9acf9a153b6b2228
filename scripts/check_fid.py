"""FID and LPIPS, compared with pytorch-fid and lpips on the same random weights.

  python scripts/check_fid.py fixtures                          writes vision/testdata/{inception,lpips}.safetensors
  python scripts/check_fid.py compare --program bin/resalign    FID of two folders, and statistics exchanged as .npz

Weights and pictures follow from names by a hash, which the Go tests compute as well; no published weights are needed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).resolve().parent.parent


def draw(name, count):
    """count numbers in [0, 1) with 24 bits: SplitMix64 that begins at the FNV-1a hash of the name."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def parameter(name, shape):
    """What the parameter of this name is: kernels that keep the size of activations, and normalisations near the identity."""
    size = int(np.prod(shape))
    u = draw(name, size)
    if name.endswith("running_var"):
        values = 0.75 + 0.5 * u
    elif name.endswith("bn.weight"):
        values = 1 + 0.2 * (2 * u - 1)
    elif name.startswith("lin"):
        values = u
    elif len(shape) >= 2:
        values = (2 * u - 1) * np.sqrt(6 / (size // shape[0]))
    else:
        values = 0.1 * (2 * u - 1)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def picture(name, width, height):
    """A gradient in three colours with noise."""
    noise = (draw(name, width * height * 3) * 64).astype(np.int64).reshape(height, width, 3)
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * (1 + c) + 2 * y + noise) % 256).astype(np.uint8)


def fill(module, rename=lambda n: n):
    state = {}
    for name, t in module.state_dict().items():
        if name.endswith("num_batches_tracked") or name.startswith(("scaling_layer", "fc.")):
            state[name] = t
        else:
            state[name] = parameter(rename(name), tuple(t.shape))
    module.load_state_dict(state)
    return module


def inception(weights=None):
    """pytorch-fid's network, with random weights in place of those it would download."""
    import pytorch_fid.inception as fid

    torchvision_net = {}

    def load(*_, **__):
        net = torchvision_net["net"]
        return fill(net).state_dict()

    original = fid._inception_v3

    def remember(*args, **kwargs):
        torchvision_net["net"] = original(*args, **kwargs)
        return torchvision_net["net"]

    fid._inception_v3, fid.load_state_dict_from_url = remember, load
    net = fid.InceptionV3().eval()
    if weights:
        torch.save(torchvision_net["net"].state_dict(), weights)
    return net


def lpips_net(kind):
    import re

    import lpips

    net = lpips.LPIPS(net=kind, pnet_rand=True, pretrained=False, verbose=False).eval()
    return fill(net, lambda n: re.sub(r"^lins\.(\d)", r"lin\1", re.sub(r"^net\.slice\d\.", "features.", n)))


def batch(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


SIZES = [(400, 303), (96, 130)]


@torch.no_grad()
def fixtures():
    out = HERE / "vision" / "testdata"
    out.mkdir(exist_ok=True)
    net = inception()
    features = [net(batch(picture(f"picture {w}x{h}", w, h)) / 255)[0].flatten() for w, h in SIZES]
    save_file({"features": torch.stack(features).numpy()}, out / "inception.safetensors")
    distances = {}
    for kind in ("alex", "vgg"):
        net = lpips_net(kind)
        values = []
        for w, h in ((64, 48), (33, 70)):
            a, b = picture(f"a {w}x{h}", w, h), picture(f"b {w}x{h}", w, h)
            b = (a.astype(np.int64) * 3 // 4 + b // 4).astype(np.uint8)
            values.append(net(batch(a) / 127.5 - 1, batch(b) / 127.5 - 1).flatten())
        distances[kind] = torch.cat(values).numpy()
    save_file(distances, out / "lpips.safetensors")
    print({k: v.tolist() for k, v in distances.items()})


def compare(program, keep, count, form):
    from pytorch_fid import fid_score

    folder = pathlib.Path(keep or tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    weights = folder / "inception.pth"
    net = inception(weights)

    class Stored(type(net)):
        def __new__(cls, *_):
            return net

        def __init__(self, *_):
            pass

    fid_score.InceptionV3 = Stored
    for name, contrast in (("a", 1.0), ("b", 0.8)):
        (folder / name).mkdir(exist_ok=True)
        for i in range(count):
            w, h = [(256, 256), (199, 301), (512, 384)][i % 3]
            small = draw(f"{name} {i}", 12 * 12 * 3).reshape(12, 12, 3) * 255 * contrast
            image = Image.fromarray(small.astype(np.uint8)).resize((w, h), Image.BICUBIC)
            image.save(folder / name / f"{i:05d}.{form}")
    paths = [str(folder / "a"), str(folder / "b")]
    want = fid_score.calculate_fid_given_paths(paths, 1, "cpu", 2048, 0)

    def ours(pictures, reference, *flags):
        out = tempfile.mkdtemp(dir=folder)
        line = [program, "score", pictures, "--metric", f"fid:{weights}", "--reference", reference, "--out", out, "--json", *flags]
        result = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
        return result["folders"][0]["metrics"][0]["value"]

    stored = str(folder / "ours.npz")
    values = {"resalign": ours(paths[0], paths[1], "--save-reference", stored)}
    with np.load(stored) as f:
        print("numpy reads", {k: (f[k].shape, f[k].dtype) for k in f.files})
    values["pytorch-fid with the statistics of resalign"] = fid_score.calculate_fid_given_paths([paths[0], stored], 1, "cpu", 2048, 0)
    theirs = str(folder / "theirs.npz")
    pathlib.Path(theirs).unlink(missing_ok=True)
    fid_score.save_fid_stats([paths[1], theirs], 1, "cpu", 2048, 0)
    values["resalign with the statistics of pytorch-fid"] = ours(paths[0], theirs)
    print(f"{'pytorch-fid':45} {want:.6f}")
    worst = 0
    for name, value in values.items():
        off = abs(value / want - 1)
        worst = max(worst, off)
        print(f"{name:45} {value:.6f}  {100 * off:.5f} % off")
    sys.exit(int(worst > 1e-3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fixtures", "compare"])
    parser.add_argument("--program", default="bin/resalign")
    parser.add_argument("--keep", help="folder for pictures and weights (default: a temporary one)")
    parser.add_argument("--count", type=int, default=60, help="pictures in each folder")
    parser.add_argument("--format", default="png", choices=["png", "jpg", "webp"])
    args = parser.parse_args()
    torch.manual_seed(0)
    fixtures() if args.what == "fixtures" else compare(args.program, args.keep, args.count, args.format)
