"""Draw docs/scorers.jpg: the same photographs under every scorer, at equal tokens.

    python docs/scorers.py PHOTOGRAPHS [OUT]

PHOTOGRAPHS is a folder with the pictures that scikit-image ships.
"""

import sys
from pathlib import Path

from PIL import Image

import quadpipe
from quadpipe.render import Exhibit, draw_quadtrees

TOKENS = 64
# With the index of its ImageNet class: espresso, moped.
PHOTOGRAPHS = {"coffee.png": 967, "motorcycle_left.png": 665}
SCORERS = {
    "pixel-blur": {"scorer": "pixel-blur"},
    "upsample-mse": {"scorer": "upsample-mse"},
    "laplacian": {"scorer": "laplacian"},
    "entropy": {"scorer": "entropy"},
    "feature, EfficientNet-Lite0": {"scorer": "feature", "backbone": "efficientnet-lite0"},
    "feature, stride 16": {
        "scorer": "feature",
        "backbone": "efficientnet-lite0",
        "scorer_stride": 16,
    },
    "grad-cam": {"scorer": "grad-cam"},
    "random": {"scorer": "random"},
}
COLUMNS = 4


def main(photographs: Path, out: Path) -> None:
    exhibits = []
    for name, label in PHOTOGRAPHS.items():
        with Image.open(photographs / name) as file:
            photograph = file.convert("RGB")
        for title, options in SCORERS.items():
            tokenizer = quadpipe.Tokenizer(tokens=TOKENS, **options)
            hint = label if tokenizer.scorer.label_aware else None
            exhibits.append(Exhibit(mosaic=tokenizer(photograph, hint), title=title))
    sheet = draw_quadtrees(exhibits, TOKENS, COLUMNS)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(
        out, quality=85
    )
    print(out)


if __name__ == "__main__":
    default = Path(__file__).with_name("scorers.jpg")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
