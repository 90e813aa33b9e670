"""quadpipe: mixed-resolution tokens for Vision Transformers, made once, offline, and shared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadpipe.job import tokenize
    from quadpipe.mosaic import Leaves, Mosaic, dense_map
    from quadpipe.shards import Dataset
    from quadpipe.sharing import copy
    from quadpipe.tokenizer import Tokenizer, TokenizerConfig

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Leaves",
    "Mosaic",
    "Tokenizer",
    "TokenizerConfig",
    "copy",
    "dense_map",
    "tokenize",
]

_HOMES = {
    "Dataset": "quadpipe.shards",
    "Leaves": "quadpipe.mosaic",
    "Mosaic": "quadpipe.mosaic",
    "Tokenizer": "quadpipe.tokenizer",
    "TokenizerConfig": "quadpipe.tokenizer",
    "copy": "quadpipe.sharing",
    "dense_map": "quadpipe.mosaic",
    "tokenize": "quadpipe.job",
}


def __getattr__(name: str) -> Any:
    """Load a public name where it lives, on first use: `import quadpipe` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quadpipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
