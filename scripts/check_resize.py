"""data/testdata/resize.json: what Pillow makes of 100 pictures of odd sizes, as SHA-256, for the test of the resampler.

  python scripts/check_resize.py

Pixels follow from names by the hash of check_fid.py, which the test computes as well. Pictures are RGB, gray, with a palette
or with transparency, which is laid on white before resizing, as this program does when it decodes.
"""

import hashlib
import json
import pathlib

import numpy as np
import PIL
from PIL import Image

from check_fid import draw

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "testdata" / "resize.json"
FILTERS = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
EDGES = [(1, 1, 7, 5), (1, 300, 5, 11), (300, 1, 11, 5), (2, 2, 299, 299), (601, 401, 1, 1), (5, 5, 5, 9), (9, 5, 4, 5), (400, 30, 30, 400)]


def pixels(name, kind, width, height):
    """The decoded RGB picture."""
    count = width * height
    if kind == "gray":
        v = (draw(name, count) * 256).astype(np.uint8).reshape(height, width)
        return Image.fromarray(v).convert("RGB")
    if kind == "palette":
        image = Image.fromarray((draw(name, count) * 256).astype(np.uint8).reshape(height, width), "P")
        image.putpalette((draw(name + " palette", 768) * 256).astype(np.uint8).tobytes())
        return image.convert("RGB")
    if kind == "alpha":
        v = (draw(name, 4 * count) * 256).astype(np.int64).reshape(height, width, 4)
        colour, alpha = v[..., :3], v[..., 3:]
        return Image.fromarray(((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
    v = (draw(name, 3 * count) * 256).astype(np.uint8).reshape(height, width, 3)
    if kind == "edges":  # black and white: the filters overshoot
        v = np.where(v < 128, 0, 255).astype(np.uint8)
    return Image.fromarray(v)


def main():
    kinds = ["rgb", "edges", "gray", "palette", "alpha"]
    cases = []
    for i in range(100):
        if i < len(EDGES):
            width, height, to_width, to_height = EDGES[i]
        else:
            width, height, to_width, to_height = (1 + int(u * u * 330) for u in draw(f"sizes {i}", 4))
        name, kind = f"resize {i}", kinds[i % len(kinds)]
        picture = pixels(name, kind, width, height)
        hashes = {f: hashlib.sha256(np.asarray(picture.resize((to_width, to_height), which)).tobytes()).hexdigest()[:16] for f, which in FILTERS.items()}
        cases.append({"name": name, "kind": kind, "from": [width, height], "to": [to_width, to_height], "sha256": hashes})
    lines = ",\n".join(json.dumps(c) for c in cases)
    OUT.write_text(f'{{"pillow": "{PIL.__version__}", "pictures": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
