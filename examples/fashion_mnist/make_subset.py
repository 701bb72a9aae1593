"""Writes the part of Fashion-MNIST that ships with modcap: ``data/calibration.npz`` and
``data/evaluation.npz``.

    python examples/fashion_mnist/make_subset.py [FOLDER]

FOLDER holds the four idx files (default: that of Debian's ``dataset-fashion-mnist``). Evaluation
is the whole test set; calibration is the pool that ``modcap.data.sources`` draws from, so that the
same images are chosen from the subset as from the full set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from modcap import zoo
from modcap.data import sources as data

HERE = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", default="/usr/share/datasets/fashion-mnist")
    spec = f"fashion-mnist:{parser.parse_args().folder}"
    for split in ("calibration", "evaluation"):
        found = data.load(spec, split=split, preprocess=zoo.PREPROCESS)
        file = HERE / f"{split}.npz"
        np.savez_compressed(file, images=found.images, labels=found.labels.astype(np.uint8))
        print(f"{file.name}: {len(found)} images, {file.stat().st_size:,} bytes, {found.digest}")


if __name__ == "__main__":
    main()
