"""Weights files: plain tensors, never code."""

import io
import json
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quadpipe.errors import ConfigError, ShardError, first_line

if TYPE_CHECKING:
    from torch import Tensor

_DEEPEST_WRAPPER = 3
_WRAPPERS = ("state_dict", "model", "state_dict_ema", "teacher", "student")


def read_weights_file(path: Path) -> bytes:
    """The bytes of a weights file; ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give a .safetensors, .pth or .pt file"
        ) from error


def load_torch(data: bytes) -> Any:
    """The contents of a torch file, loaded without running code and within the memory of its size.

    Raises ValueError if it claims more memory or holds other objects, and whatever torch raises
    on damaged files.
    """
    import torch

    if b"bytearray" in data:  # the one allowed function that can allocate any amount of memory
        raise ValueError("it creates a bytearray, which weights do not need")
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(record.file_size for record in archive.infolist()) > len(data):
                raise ValueError("it is compressed, which torch's files are not")
    try:
        document = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own message advises weights_only=False, which would run the file's code.
        raise ValueError("it is damaged, or holds objects that are not tensors") from None
    storages: dict[int, int] = {}
    for tensor in _tensors(document):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(f"a tensor of {list(tensor.shape)} has {storage.nbytes()} bytes")
    if sum(storages.values()) > len(data):
        raise ValueError(f"its tensors claim {sum(storages.values()):,} bytes")
    return document


def _tensors(document: Any) -> "Iterator[Tensor]":
    """All plain tensors in nested containers, which may contain themselves."""
    import torch

    pending, seen = [document], set[int]()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            if item.layout == torch.strided and not item.is_meta:
                yield item
        elif isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, list | tuple | set):
            pending += item


def parse_weights(data: bytes, where: str) -> "dict[str, Tensor]":
    """The tensors of a safetensors or torch file; ShardError if it holds other objects.

    The wrappers of common training programs (`state_dict`, `model`, ..) are removed.
    """
    import torch

    try:
        if data[8:9] == b"{":  # safetensors: the length of the header, then its JSON
            from safetensors.torch import load

            return dict(load(data))
        document = load_torch(data)
    except Exception as error:  # the parsers raise many kinds on damaged files
        raise ShardError(
            f"{where} does not hold plain weights ({type(error).__name__}: {first_line(error)}); "
            f"give a safetensors or torch file of tensors only"
        ) from error
    for _ in range(_DEEPEST_WRAPPER):  # a dict may contain itself
        if isinstance(document, Mapping):
            wrapper = next((w for w in _WRAPPERS if isinstance(document.get(w), Mapping)), None)
            document = document if wrapper is None else document[wrapper]
    if not isinstance(document, Mapping):
        raise ShardError(f"{where} holds a {type(document).__name__}, not a state dict")
    tensors = {str(k): v for k, v in document.items() if isinstance(v, torch.Tensor)}
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized
    ]
    if odd:
        raise ShardError(f"{where} holds {odd[0]}, which is not a plain tensor; save dense weights")
    return tensors


def parse_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that `parse_weights` has read; none of a torch file."""
    if data[8:9] != b"{":
        return {}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__") or {})


def state_dict_problems(
    weights: "Mapping[str, Tensor]",
    wanted: "Mapping[str, Tensor]",
    *,
    may_miss: Collection[str] = (),
    may_be_unused: Collection[str] = (),
) -> list[str]:
    """How `weights` differ from the state dict `wanted` in names and shapes, or in not being
    floating point; empty if they fit."""
    missing = wanted.keys() - weights.keys() - set(may_miss)
    unexpected = weights.keys() - wanted.keys() - set(may_be_unused)
    return [
        *(f"missing {name}" for name in sorted(missing)),
        *(f"unexpected {name}" for name in sorted(unexpected)),
        *(
            f"{name} {list(weights[name].shape)}, expected {list(wanted[name].shape)}"
            for name in sorted(wanted.keys() & weights.keys())
            if weights[name].shape != wanted[name].shape
        ),
        *(
            f"{name} {weights[name].dtype}, expected {wanted[name].dtype}"
            for name in sorted(wanted.keys() & weights.keys())
            if wanted[name].is_floating_point() and not weights[name].is_floating_point()
        ),
    ]


def listing(problems: list[str], at_most: int = 4) -> str:
    """The first problems in one line, and the number of the others."""
    more = f" and {len(problems) - at_most} more" if len(problems) > at_most else ""
    return "; ".join(problems[:at_most]) + more
