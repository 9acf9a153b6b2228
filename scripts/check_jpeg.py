"""Compares package data/jpeg with Pillow (libjpeg-turbo), byte for byte.

  python scripts/check_jpeg.py fixtures             writes data/jpeg/testdata/
  python scripts/check_jpeg.py compare --count 600  draws pictures into a folder and holds the program's pixels against Pillow's
  python scripts/check_jpeg.py compare --pictures FOLDER     the same for files of your own; what Pillow refuses must be refused

Pictures are encoded by Pillow over its settings, and by the small encoder below where Pillow has none: other sampling
factors, scans of single components, colour spaces told by Adobe segments or component numbers.
"""

import argparse
import hashlib
import io
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
import PIL
from PIL import Image, features

HERE = pathlib.Path(__file__).resolve().parent.parent
SIZES = [(1, 1), (7, 13), (17, 33), (8, 8), (16, 16), (2, 3), (3, 2), (4, 4), (5, 1), (1, 5), (9, 9), (15, 17), (31, 64), (64, 31), (65, 65), (100, 75)]
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))
DCT = np.array([[math.sqrt((1 if u == 0 else 2) / 8) * math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)])


def pixels(rng, width, height, channels, kind):
    """A picture: noise, something smooth, a mixture, hard edges or one colour."""
    noise = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if kind == "noise":
        return noise
    if kind == "edges":
        return np.where(noise < 128, 0, 255).astype(np.uint8)
    if kind == "flat":
        return np.broadcast_to(noise[:1, :1], noise.shape).copy()
    coarse = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.BICUBIC)) for c in range(channels)], -1)
    return smooth if kind == "smooth" else (smooth * 0.8 + noise * 0.2).astype(np.uint8)


KINDS = ["noise", "smooth", "mixed", "edges", "flat"]


def by_pillow(picture, mode, **options):
    out = io.BytesIO()
    Image.fromarray(picture[..., 0] if mode == "L" else picture, mode).save(out, "JPEG", **options)
    return out.getvalue()


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def standard_codes():
    """The Huffman codes that Pillow writes unless told to optimise: {(class, destination): (segment body, {symbol: code})}."""
    file, at, found = by_pillow(np.zeros((8, 8, 3), np.uint8), "RGB"), 2, {}
    while file[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", file[at + 2 : at + 4])
        body = file[at + 4 : at + 2 + length]
        if file[at + 1] == 0xC4:
            counts, symbols, codes, code, i = body[1:17], body[17:], {}, 0, 0
            for bits, n in enumerate(counts, 1):
                for _ in range(n):
                    codes[symbols[i]] = format(code, f"0{bits}b")
                    code, i = code + 1, i + 1
                code *= 2
            found[body[0] >> 4, body[0] & 15] = (body, codes)
        at += 2 + length
    return found


class Bits(list):
    """The entropy-coded data of a scan."""

    def number(self, value):
        """Magnitude class and bits of a number."""
        size = abs(int(value)).bit_length()
        return size, format(int(value) if value > 0 else int(value) + (1 << size) - 1, f"0{size}b") if size else ""

    def mean(self, codes, difference):
        size, bits = self.number(difference)
        self.append(codes[size] + bits)

    def detail(self, codes, coefficients):
        run = 0
        last = max((i for i, c in enumerate(coefficients) if c), default=-1)
        for c in coefficients[: last + 1]:
            if c == 0:
                run += 1
                continue
            self.extend([codes[0xF0]] * (run // 16))
            size, bits = self.number(c)
            self.append(codes[run % 16 << 4 | size] + bits)
            run = 0
        if last + 1 < len(coefficients):
            self.append(codes[0])

    def bytes(self):
        text = "".join(self)
        text += "1" * (-len(text) % 8)
        return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


def encode(picture, factors, quality=75, scans="together", restart=0, adobe=None, jfif=False, ids=(1, 2, 3, 4)):
    """A JPEG file of the given samples, with any sampling factors; scans: together, apart or progressive."""
    height, width, count = picture.shape
    most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = -(-width // (8 * most_h)), -(-height // (8 * most_v))
    tables = standard_codes()
    quantizer = np.clip((np.add.outer(np.arange(8), np.arange(8)) * 6 + 10) * (200 - 2 * quality) / 100, 1, 255).astype(int)
    blocks, sizes = [], []
    for c, (h, v) in enumerate(factors):
        samples = np.pad(picture[..., c].astype(float), ((0, 8 * most_v * down - height), (0, 8 * most_h * across - width)), "edge")
        samples = samples.reshape(8 * v * down, most_v // v, 8 * h * across, most_h // h).mean((1, 3)) - 128
        grid = samples.reshape(v * down, 8, h * across, 8).transpose(0, 2, 1, 3)
        blocks.append(np.round(DCT @ grid @ DCT.T / quantizer).astype(int).reshape(v * down, h * across, 64)[..., ZIGZAG])
        sizes.append((-(-width * h // (8 * most_h)), -(-height * v // (8 * most_v))))
    file = b"\xff\xd8"
    if jfif:
        file += segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    if adobe is not None:
        file += segment(0xEE, b"Adobe\0d\0\0\0\0" + bytes([adobe]))
    file += segment(0xDB, b"\0" + bytes(quantizer.reshape(64)[ZIGZAG].tolist()))
    frame = b"".join(bytes([ids[c], h << 4 | v, 0]) for c, (h, v) in enumerate(factors))
    file += segment(0xC2 if scans == "progressive" else 0xC0, struct.pack(">BHHB", 8, height, width, count) + frame)
    file += b"".join(segment(0xC4, body) for body, _ in tables.values())
    if restart:
        file += segment(0xDD, struct.pack(">H", restart))

    def scan(components, first, last):
        out = segment(0xDA, bytes([len(components)]) + b"".join(bytes([ids[c], 0]) for c in components) + bytes([first, last, 0]))
        if len(components) == 1:
            c = components[0]
            units = [[(c, x, y)] for y in range(sizes[c][1]) for x in range(sizes[c][0])]
        else:
            units = [
                [(c, x * factors[c][0] + i, y * factors[c][1] + j) for c in components for j in range(factors[c][1]) for i in range(factors[c][0])]
                for y in range(down) for x in range(across)
            ]
        bits, means = Bits(), {}
        for i, unit in enumerate(units):
            if restart and i and i % restart == 0:
                out += bits.bytes() + bytes([0xFF, 0xD0 + (i // restart - 1) % 8])
                bits, means = Bits(), {}
            for c, x, y in unit:
                block = blocks[c][y, x].tolist()
                if first == 0:
                    bits.mean(tables[0, 0][1], block[0] - means.get(c, 0))
                    means[c] = block[0]
                if last > 0:
                    bits.detail(tables[1, 0][1], block[max(first, 1) : last + 1])
        return out + bits.bytes()

    everything = range(count)
    together = sum(h * v for h, v in factors) <= 10 and scans != "apart"
    groups = [list(everything)] if together else [[c] for c in everything]
    if scans == "progressive":
        file += b"".join(scan(g, 0, 0) for g in groups)
        file += b"".join(scan([c], *band) for band in ((1, 5), (6, 63)) for c in everything)
    else:
        file += b"".join(scan(g, 0, 63) for g in groups)
    return file + b"\xff\xd9"


FACTORS = {
    "411": [(4, 1), (1, 1), (1, 1)], "440": [(1, 2), (1, 1), (1, 1)], "441": [(1, 4), (1, 1), (1, 1)], "410": [(4, 2), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)], "422": [(2, 1), (1, 1), (1, 1)], "444": [(1, 1), (1, 1), (1, 1)],
    "tall 422": [(2, 2), (1, 2), (1, 2)], "wide 440": [(2, 2), (2, 1), (2, 1)], "unequal": [(2, 2), (2, 1), (1, 2)], "luma coarse": [(1, 1), (2, 2), (2, 1)],
    "double 420": [(4, 4), (2, 2), (2, 2)], "triple": [(3, 3), (1, 1), (1, 3)], "all double": [(2, 2), (2, 2), (2, 2)],
}


def drawn(rng, i, size=None):
    """The i-th file and what it is."""
    width, height = size or (SIZES[i % len(SIZES)] if i % 3 else tuple(int(1 + u * u * 150) for u in rng.random(2)))
    kind, quality = KINDS[int(rng.integers(len(KINDS)))], int(rng.choice([1, 5, 20, 50, 75, 90, 95, 100]))
    restart = int(rng.choice([0, 0, 1, 3]))
    if i % 2 == 0:
        mode = "L RGB RGB RGB RGB CMYK".split()[int(rng.integers(6))]
        options = {"quality": quality, "progressive": bool(rng.integers(2)), "optimize": bool(rng.integers(2)), "restart_marker_blocks": restart}
        if mode == "RGB":
            options |= {"subsampling": int(rng.integers(3))} if rng.random() < 0.85 else {"keep_rgb": True}
        return by_pillow(pixels(rng, width, height, len(mode) if mode != "L" else 1, kind), mode, **options), f"{mode} {width}x{height} {kind} {options}"
    name = list(FACTORS)[int(rng.integers(len(FACTORS)))]
    factors, options = FACTORS[name], {"quality": quality, "scans": ["together", "apart", "progressive"][int(rng.integers(3))], "restart": restart}
    channels = 3
    if rng.random() < 0.25:
        channels, options["adobe"] = 4, [None, 0, 2][int(rng.integers(3))]
        factors = [*factors, factors[0]]
    elif rng.random() < 0.15:
        channels, factors = 1, factors[:1]
    else:
        options |= {"adobe": [None, 0, 1][int(rng.integers(3))], "jfif": bool(rng.integers(2)), "ids": [(1, 2, 3), (82, 71, 66), (0, 1, 2)][int(rng.integers(3))]}
    if options["scans"] == "together" and sum(h * v for h, v in factors) > 10:
        options["scans"] = "apart"
    return encode(pixels(rng, width, height, channels, kind), factors, **options), f"{name}, {channels} channels, {width}x{height} {kind} {options}"


def decoded(file):
    return Image.open(io.BytesIO(file)).convert("RGB")


def write(folder, name, file, about, keep):
    (folder / f"{name}.jpg").write_bytes(file)
    try:
        picture = decoded(file)
    except OSError as why:  # sha256 is missing
        return {"file": f"{name}.jpg", "about": f"{about}: {why}"}
    if keep:
        (folder / f"{name}.rgb").write_bytes(picture.tobytes())
    return {"file": f"{name}.jpg", "about": about, "width": picture.width, "height": picture.height, "sha256": hashlib.sha256(picture.tobytes()).hexdigest()}


def save(folder, cases):
    lines = ",\n".join(json.dumps(c) for c in cases)
    (folder / "pictures.json").write_text(f'{{"pillow": "{PIL.__version__}", "libjpeg-turbo": "{features.version("libjpeg_turbo")}", "pictures": [\n{lines}\n]}}\n')


def fixtures():
    folder = HERE / "data" / "jpeg" / "testdata"
    folder.mkdir(parents=True, exist_ok=True)
    rng, cases = np.random.default_rng(1), []

    def add(name, file, about):
        cases.append(write(folder, name, file, about, False))

    for i, (width, height) in enumerate([(1, 1), (7, 13), (17, 33), (8, 8), (40, 21)]):
        for subsampling, label in enumerate(["444", "422", "420"]):
            progressive, quality = (i + subsampling) % 2 == 1, [75, 5, 95, 100, 30][(i + subsampling) % 5]
            options = {"quality": quality, "subsampling": subsampling, "progressive": progressive, "optimize": i % 2 == 0}
            add(f"{label}-{width}x{height}", by_pillow(pixels(rng, width, height, 3, KINDS[i % 3]), "RGB", **options), str(options))
    for quality in (1, 50, 100):
        add(f"edges-{quality}", by_pillow(pixels(rng, 24, 24, 3, "edges"), "RGB", quality=quality, subsampling=0), "the transform's extremes")
    for progressive in (False, True):
        label = "progressive" if progressive else "baseline"
        add(f"gray-{label}", by_pillow(pixels(rng, 19, 23, 1, "mixed"), "L", progressive=progressive), label)
        add(f"cmyk-{label}", by_pillow(pixels(rng, 19, 23, 4, "mixed"), "CMYK", progressive=progressive), label)
        add(f"restart-{label}", by_pillow(pixels(rng, 70, 50, 3, "smooth"), "RGB", progressive=progressive, restart_marker_blocks=2, quality=60), label)
    add("rgb", by_pillow(pixels(rng, 19, 23, 3, "mixed"), "RGB", keep_rgb=True), "stored as RGB")
    for name, factors in FACTORS.items():
        for scans in ("together", "apart", "progressive"):
            if scans == "together" and sum(h * v for h, v in factors) > 10 or scans != "together" and name not in ("411", "440", "unequal"):
                continue
            file = encode(pixels(rng, 37, 35, 3, "mixed"), factors, quality=70, scans=scans, jfif=True)
            add(f"{name.replace(' ', '-')}-{scans}", file, f"sampling factors {factors}")
    mixed = pixels(rng, 21, 18, 4, "mixed")
    add("ycck", encode(mixed, [(2, 2), (1, 1), (1, 1), (2, 2)], adobe=2), "YCCK")
    add("adobe-rgb", encode(mixed[..., :3], FACTORS["444"], adobe=0), "RGB by the Adobe segment")
    add("jfif-over-adobe", encode(mixed[..., :3], FACTORS["444"], adobe=0, jfif=True), "YCbCr: JFIF comes first")
    add("ids-rgb", encode(mixed[..., :3], FACTORS["420"], ids=(82, 71, 66)), "RGB by the components' numbers")
    add("restart-apart", encode(mixed[..., :3], FACTORS["420"], scans="apart", restart=1), "nine restart markers: their numbers wrap")
    save(folder, cases)


def compare(count, seed, keep, size, pictures):
    folder = pathlib.Path(keep or tempfile.mkdtemp())
    folder.mkdir(exist_ok=True, parents=True)
    rng, cases = np.random.default_rng(seed), []
    files = sorted(p for p in pathlib.Path(pictures).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")) if pictures else [None] * count
    for i, path in enumerate(files):
        file, about = (path.read_bytes(), str(path)) if path else drawn(rng, i, size)
        cases.append(write(folder, f"{i:05d}", file, about, True))
    save(folder, cases)
    run = subprocess.run(["go", "test", "./data/jpeg", "-count=1", "-run", "Reference", "-v"], cwd=HERE, env={**os.environ, "RESALIGN_JPEG_REFERENCE": str(folder)})
    sys.exit(run.returncode)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fixtures", "compare"])
    parser.add_argument("--count", type=int, default=600, help="pictures")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="folder for pictures and pixels (default: a temporary one)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="make all pictures this large")
    parser.add_argument("--pictures", metavar="FOLDER", help="compare the JPEG files of this folder instead of drawn ones")
    args = parser.parse_args()
    fixtures() if args.what == "fixtures" else compare(args.count, args.seed, args.keep, args.size, args.pictures)
