"""Compile all kernels, once for the processes that run the tests: python tests/kernels.py"""

import tempfile
from pathlib import Path

import numpy as np

import quadpipe
from forging import make_dataset
from quadpipe.loader import Loader
from quadpipe.scorers import SCORERS


def main() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for resample in ("bilinear", "area"):
        quadpipe.Tokenizer(tokens=7, image_size=64, resample=resample)(image)
    for name, scorer in SCORERS.items():
        if not scorer.uses_network and name not in ("precomputed", "uniform"):
            quadpipe.Tokenizer(scorer=name, tokens=7, image_size=64)(image)
    with tempfile.TemporaryDirectory() as folder:
        datasets = [make_dataset(Path(folder, str(seed)), seed=seed) for seed in (0, 1)]
        next(Loader(datasets, batch_size=4).epoch(0))


if __name__ == "__main__":
    main()
