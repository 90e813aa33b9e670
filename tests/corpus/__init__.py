"""Damaged, forged and foreign image files, made from photographs by a seed.

    for name, data in corpus(seed=0, count=2000):
        ...

The same seed, count and encoders give the same files. A name holds the image and the damage.
"""

import random
from collections.abc import Iterator

from corpus.damages import DAMAGES
from corpus.files import bombs, readable, refused

EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("ppm", "pgm", "pbm", "pnm"),
)


def corpus(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` files, a name and bytes each: all of `corpus.files`, then damaged ones."""
    whole = {**readable(), **refused(), **bombs()}
    chance = random.Random(seed)
    sources, first = sorted({**readable(), **refused()}), sorted(whole)
    for number in range(count):
        if number < len(first):
            name = first[number]
            yield f"{number:05d}-{name}", whole[name]
            continue
        name = chance.choice(sources)
        damage = chance.choice(DAMAGES)
        data = damage(whole[name], chance)
        if chance.random() < 0.2:
            data = chance.choice(DAMAGES)(data, chance)
        stem, _, extension = name.partition(".")
        if chance.random() < 0.3:
            extension = chance.choice(EXTENSIONS)
        yield f"{number:05d}-{stem}-{damage.__name__}.{extension}", data
