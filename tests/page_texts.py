"""Text that would run, if a page did not escape it."""

from dataclasses import replace

import quadpipe
from quadpipe.cli.gallery import exhibits
from quadpipe.render import Exhibit

_TEXT = "</script><img src=x onerror=alert(1)>\"'&amp;\u202e"


def hostile(dataset: quadpipe.Dataset) -> tuple[quadpipe.Dataset, list[Exhibit], str]:
    """The dataset and two samples with one text wherever a stranger's text can be; the text."""
    parent = {"fingerprint": _TEXT, "name": _TEXT, "license": _TEXT, "source": _TEXT}
    shown = [replace(each, title=_TEXT, label=_TEXT) for each in exhibits(dataset, "train", 2)]
    dataset.manifest = replace(
        dataset.manifest,
        classes=[_TEXT, *(dataset.manifest.classes or ())[1:]],
        name=_TEXT,
        license=_TEXT,
        source=_TEXT,
        quadpipe=_TEXT,
        scorer=dataset.manifest.scorer | {"name": _TEXT, _TEXT: [_TEXT]},
        imaging_library={"name": _TEXT, "version": _TEXT, _TEXT: _TEXT},
        parents=(parent | {"parents": [parent]},),
        fingerprint="",
    )
    return dataset, shown, _TEXT
