"""Pickles that would run code: loading them makes a file in the working folder."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

MARKER = Path("was-run")


class Hostile:
    def __reduce__(self):
        return (Path.touch, (MARKER,))


def saved(document: object, **options: Any) -> bytes:
    """A torch file."""
    file = io.BytesIO()
    torch.save(document, file, **options)
    return file.getvalue()


def hostile(document: object) -> dict[str, bytes]:
    """Files of a document that holds a Hostile, by kind; the first is the bare pickle of one."""
    return {
        "a pickle": pickle.dumps(Hostile()),
        "a torch file": saved(document),
        "a torch file of before": saved(document, _use_new_zipfile_serialization=False),
    }
