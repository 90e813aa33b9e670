"""The same bytes on processors of other kinds: their instructions are switched off one by one."""

import os
import subprocess
import sys

from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched

PROGRAM = """
import hashlib
import numpy as np
import quadpipe
from sklearn.datasets import load_sample_images

images = [image[100:400, 100:500] for image in load_sample_images().images]
digest = hashlib.sha256()
for scorer in (
    *("pixel-blur", "entropy", "laplacian", "upsample-mse"),
    *("saliency", "rarity", "barrier", "random"),
):
    thresholds = ((32, 1.7), (64, 0.3))
    tokenizer = quadpipe.Tokenizer(
        scorer=scorer, tokens=148, scale_weight=0.7, thresholds=thresholds
    )
    for mosaic in tokenizer(images):
        for part in (mosaic.tokens, mosaic.nodes, mosaic.importance):
            digest.update(part.tobytes())
print(digest.hexdigest())
"""


def digest(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_processors_give_the_same_bytes(tmp_path):
    here = digest()
    assert digest(NPY_DISABLE_CPU_FEATURES=" ".join(dispatched)) == here
    kernels = str(tmp_path)  # compiled again
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert digest(NUMBA_CACHE_DIR=kernels, **generic) == here
