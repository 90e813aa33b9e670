"""The compiled reader (numba): samples of mapped shards -> a batch.

It makes the checks of `shards.members`. A sample that differs in any way from what quadpipe writes
is left to the caller, who reads it with `shards.reader`, which accepts it or raises. Unknown
members are skipped.

Import this module inside the functions that need it: numba takes half a second to load.

Letters: b samples; M nodes; R roots; K stored splits; k splits of a sample in the batch; N leaves
of all samples; T = P * P * 3 bytes of a token.
"""

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numba.core import cgutils, types
from numba.extending import intrinsic

from quadpipe.compiled import compiled
from quadpipe.shards.tar import BLOCK

_DOT, _SPACE, _ZERO, _EIGHT, _LAST = (ord(character) for character in ". 08~")
_MOST_MEMBERS = 32


def _pointer_type(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


_pointer: Any = intrinsic(_pointer_type)
"""An int64 as a pointer."""


@compiled
def gather(
    addresses: np.ndarray,
    lengths: np.ndarray,
    names: np.ndarray,
    headers: tuple[np.ndarray, np.ndarray, np.ndarray],
    root_boxes: np.ndarray,
    stored: int,
    splits: np.ndarray,
    classes: int,
    tokens: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
) -> np.ndarray:
    """Read samples; returns bool `[b]`, which ones were read.

    addresses, lengths: int64 `[b]`, of samples in memory that the caller keeps alive. names:
    uint8 `[n, 100]`, names of the members that a sample must have, after the key and its dot,
    padded with zeros: tokens, nodes, importance, with classes the label, then any others. headers:
    the NumPy headers of the first three. root_boxes: int32 `[R, 3]`. stored: K. splits: int64
    `[b]`, k of each sample. classes: number of classes, -1 without labels. Outputs are tokens:
    uint8 `[N, T]` and boxes: int16 `[N, 3]`, sample after sample, R + 3 k of each; labels: int64
    `[b]`, keys: uint8 `[b, bytes of the longest key]`.
    """
    roots, size = len(root_boxes), tokens.shape[1]
    count = roots + 4 * stored
    node_of_step = np.empty(stored, np.int64)
    done = np.zeros(len(addresses), np.bool_)
    start, stop = 0, 0
    for row in range(len(addresses)):
        start, stop = stop, stop + roots + 3 * splits[row]
        data = carray(_pointer(addresses[row]), (lengths[row],), np.uint8)
        members = _find_members(data, names, keys[row])
        if not (
            _is_array(data, members[0], headers[0], count * size)
            and _is_array(data, members[1], headers[1], count * 16)
            and _is_array(data, members[2], headers[2], stored * 4)
        ):
            continue
        nodes = data[members[1, 0] + len(headers[1]) : members[1, 1]].view(np.int32)
        if not _are_nodes(nodes.reshape(count, 4), root_boxes, node_of_step):
            continue
        importance = data[members[2, 0] + len(headers[2]) : members[2, 1]].view(np.float32)
        if not np.isfinite(importance).all():
            continue
        label = -1
        if classes >= 0:
            label = _read_label(data, members[3])
            if label < 0 or label >= classes:
                continue
        labels[row] = label
        first = members[0, 0] + len(headers[0])
        _copy_leaves(
            data[first : first + count * size],
            nodes.reshape(count, 4)[: roots + 4 * splits[row]],
            splits[row],
            tokens[start:stop],
            boxes[start:stop],
        )
        done[row] = True
    return done


@compiled
def _copy_leaves(
    pixels: np.ndarray, nodes: np.ndarray, splits: int, tokens: np.ndarray, boxes: np.ndarray
) -> None:
    """Copy the leaves after `splits` splits, a run of consecutive leaves at a time."""
    size = tokens.shape[1]
    flat = tokens.reshape(-1)
    leaf, node = 0, 0
    while node < len(nodes):
        first = node
        while node < len(nodes) and not 0 <= nodes[node, 3] < splits:
            boxes[leaf, 0] = nodes[node, 0]
            boxes[leaf, 1] = nodes[node, 1]
            boxes[leaf, 2] = nodes[node, 2]
            leaf += 1
            node += 1
        run = (node - first) * size
        # A loop compiles to vector instructions; assigning a slice does not.
        source, target = pixels[first * size :], flat[leaf * size - run :]
        for j in range(run):
            target[j] = source[j]
        node += 1


@compiled
def _find_members(data: np.ndarray, names: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 `[n, 2]`: start and end of the contents of the members with these names; fills `key`.

    All -1 when one of them is missing or a header is unusual. Other members are skipped.
    """
    found = np.full((len(names), 2), -1, np.int64)
    bad = np.full((len(names), 2), -1, np.int64)
    headers = np.empty(_MOST_MEMBERS, np.int64)
    offset, stop = 0, len(data)
    key_length, count = -1, 0
    while offset < stop and data[offset] != 0:
        if offset + BLOCK > stop or count == _MOST_MEMBERS:
            return bad
        size = _read_header(data, offset)
        first, last = offset + BLOCK, offset + BLOCK + size
        if size < 0 or last > stop:
            return bad
        dot = 0
        while dot < 100 and data[offset + dot] != _DOT:
            dot += 1
        if dot > len(key) or dot == 100:
            return bad
        if key_length < 0:
            key_length = dot
            for j in range(len(key)):
                key[j] = data[offset + j] if j < dot else 0
        elif dot != key_length:
            return bad
        for j in range(dot):
            if key[j] != data[offset + j]:
                return bad
        name = data[offset : offset + 100]
        if not _is_printable(name):
            return bad
        for j in range(count):
            if _same_name(name, data[headers[j] : headers[j] + 100]):
                return bad
        headers[count] = offset
        count += 1
        for which in range(len(names)):
            if _same_name(name[dot + 1 :], names[which]):
                found[which, 0] = first
                found[which, 1] = last
        offset = last + (-size) % BLOCK
    if np.any(found < 0) or stop % BLOCK or np.any(data[offset:stop]):
        return bad
    return found


@compiled
def _read_header(data: np.ndarray, offset: int) -> int:
    """Size of a plain file's content from its USTAR header, -1 when it is not a plain file."""
    header = data[offset : offset + BLOCK]
    total, prefix = np.int32(8 * _SPACE), np.int32(0)
    for j in range(BLOCK):
        total += np.int32(header[j])
    for j in range(148, 156):
        total -= np.int32(header[j])
    for j in range(345, 500):
        prefix += np.int32(header[j])
    kind = header[156]
    if (kind != _ZERO and kind != 0) or prefix or _octal(header, 148, 8) != total:
        return -1
    return _octal(header, 124, 12)


@compiled
def _octal(data: np.ndarray, at: int, length: int) -> int:
    """An octal number in digits, ended by spaces or zero bytes; -1 when it is not one."""
    value, digits = 0, 0
    while digits < length and _ZERO <= data[at + digits] < _EIGHT:
        value = value * 8 + int(data[at + digits]) - _ZERO
        digits += 1
    for j in range(digits, length):
        if data[at + j] != 0 and data[at + j] != _SPACE:
            return -1
    return value if digits else -1


@compiled
def _is_printable(name: np.ndarray) -> bool:
    """Whether all bytes before the first zero are printable ASCII."""
    for j in range(len(name)):
        if name[j] == 0:
            return True
        if name[j] < _SPACE or name[j] > _LAST:
            return False
    return True


@compiled
def _same_name(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two names are equal up to their first zero; `one` is not longer than `other`."""
    for j in range(len(one)):
        if one[j] != other[j]:
            return False
        if one[j] == 0:
            return True
    return len(one) == len(other) or bool(other[len(one)] == 0)


@compiled
def _is_array(data: np.ndarray, member: np.ndarray, header: np.ndarray, size: int) -> bool:
    """Whether a member exists, with this header, `size` bytes of data, and aligned numbers."""
    if member[0] < 0 or member[1] - member[0] != len(header) + size:
        return False
    if (data.ctypes.data + member[0] + len(header)) % 8:
        return False
    return np.array_equal(data[member[0] : member[0] + len(header)], header)


@compiled
def _are_nodes(nodes: np.ndarray, root_boxes: np.ndarray, node_of_step: np.ndarray) -> bool:
    """Whether int32 `[M, 4]` nodes are the roots and the quarters of K splits."""
    roots, splits = len(root_boxes), len(node_of_step)
    for node in range(roots):
        for column in range(3):
            if nodes[node, column] != root_boxes[node, column]:
                return False
    node_of_step[:] = -1
    for node in range(len(nodes)):
        step = nodes[node, 3]
        if step != -1:
            if step < 0 or step >= splits or node_of_step[step] >= 0:
                return False
            node_of_step[step] = node
    for step in range(splits):
        parent = node_of_step[step]
        child = roots + 4 * step
        if parent < 0 or parent >= child or nodes[parent, 2] < 1:
            return False
        half = 1 << (nodes[parent, 2] - 1)
        for dy in range(2):
            for dx in range(2):
                if (
                    nodes[child, 0] != nodes[parent, 0] + dx * half
                    or nodes[child, 1] != nodes[parent, 1] + dy * half
                    or nodes[child, 2] != nodes[parent, 2] - 1
                ):
                    return False
                child += 1
    return True


@compiled
def _read_label(data: np.ndarray, member: np.ndarray) -> int:
    """A decimal number of one to nine digits, -1 when it is not one."""
    length = member[1] - member[0]
    if member[0] < 0 or length < 1 or length > 9:
        return -1
    value = 0
    for at in range(member[0], member[1]):
        digit = int(data[at]) - _ZERO
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value
