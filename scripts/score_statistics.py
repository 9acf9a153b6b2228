"""score/testdata/: Fréchet and kernel distances by pytorch-fid and NumPy, and statistics that NumPy wrote, for the Go tests.

  python scripts/score_statistics.py
"""

import json
import pathlib

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance

from check_fid import draw

OUT = pathlib.Path(__file__).resolve().parent.parent / "score" / "testdata"


def features(name, count, width):
    """Correlated positive features, which follow from the name."""
    raw = draw(name, count * width).reshape(count, width)
    mixed = np.cumsum(raw - 0.5, axis=1)
    return np.maximum(mixed, 0).astype(np.float32)


def mmd(x, y):
    """The unbiased squared discrepancy under the cubic kernel."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    m, n = len(x), len(y)
    xx, yy = k(x, x), k(y, y)
    return (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * k(x, y).mean()


def main():
    OUT.mkdir(exist_ok=True)
    frechet = []
    for a, b, width in ((400, 300, 24), (200, 200, 64), (20, 400, 32), (7, 5, 16)):
        x, y = features(f"x {a} {width}", a, width), features(f"y {b} {width}", b, width)
        x, y = x.astype(np.float64), y.astype(np.float64)
        value = calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
        frechet.append({"a": a, "b": b, "width": width, "distance": float(value)})
    x, y = features("x kernel", 60, 32), features("y kernel", 60, 32)
    kernel = {"pictures": 60, "width": 32, "distance": float(mmd(x, y))}
    (OUT / "distances.json").write_text(json.dumps({"frechet": frechet, "kernel": kernel}, indent=1) + "\n")

    x = features("x npz", 50, 8).astype(np.float64)
    mu, sigma = x.mean(0), np.cov(x, rowvar=False)
    np.savez_compressed(OUT / "compressed.npz", mu=mu, sigma=sigma)
    np.savez(OUT / "fortran-float32.npz", sigma=np.asfortranarray(sigma.astype(np.float32)), mu=mu.astype(">f4"), count=50)


if __name__ == "__main__":
    main()
