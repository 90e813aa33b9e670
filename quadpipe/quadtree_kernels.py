"""The compiled loop of `quadtree`: best-first splitting with a heap. Arguments are not checked.

Letters: B batch; R roots; A splittable patches; T all patches; K splits.
"""

import numpy as np

from quadpipe.compiled import compiled

_LOW = np.int64(0xFFFFFFFF)


@compiled
def grow_trees(
    importance: np.ndarray, boxes: np.ndarray, children: np.ndarray, roots: int, splits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best-first trees of K = `splits` splits, with one heap per image.

    The most important leaf is split, and its splittable quarters go onto the heap. Of equal leaves
    the one with the smaller id is split first. importance: float32 `[B, A]` by patch id; boxes:
    int32 `[T, 3]`; children: int32 `[A, 4]`; roots: R, the ids 0 to R - 1. Returns the nodes, int32
    `[B, R + 4 K, 4]`, x, y, scale and split step, and the importance of the split patches, float32
    `[B, K]`.
    """
    batch, patches = importance.shape
    nodes = np.empty((batch, roots + 4 * splits, 4), np.int32)
    split_importance = np.empty((batch, splits), np.float32)
    heap = np.empty(patches, np.int64)
    node_of = np.empty(len(boxes), np.int32)
    bits = (importance + np.float32(0)).view(np.int32)  # 0 for -0
    for b in range(batch):
        size = 0
        for patch in range(roots):
            _set_node(nodes[b, patch], boxes[patch])
            node_of[patch] = patch
            if patch < patches:
                size = _push(heap, size, _key(bits[b, patch], patch))
        for step in range(splits):
            best = _LOW - (heap[0] & _LOW)
            split_importance[b, step] = importance[b, best]
            nodes[b, node_of[best], 3] = step
            for quarter in range(4):
                child = children[best, quarter]
                node = roots + 4 * step + quarter
                _set_node(nodes[b, node], boxes[child])
                node_of[child] = node
            first = children[best, 0]
            if first < patches:
                _replace_first(heap, size, _key(bits[b, first], first))
                for quarter in range(1, 4):
                    child = children[best, quarter]
                    size = _push(heap, size, _key(bits[b, child], child))
            else:
                size -= 1
                _replace_first(heap, size, heap[size])
    return nodes, split_importance


@compiled
def _set_node(node: np.ndarray, box: np.ndarray) -> None:
    node[0] = box[0]
    node[1] = box[1]
    node[2] = box[2]
    node[3] = -1


@compiled
def _key(bits: int, patch: int) -> int:
    """One number that orders patches: importance in the high bits, inverted id in the low bits."""
    return int((np.int64(bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (_LOW - patch))


@compiled
def _push(heap: np.ndarray, size: int, key: int) -> int:
    """Add a key to a heap of `size`, largest first; returns the new size."""
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if heap[above] >= key:
            break
        heap[place] = heap[above]
        place = above
    heap[place] = key
    return size + 1


@compiled
def _replace_first(heap: np.ndarray, size: int, key: int) -> None:
    """Replace the first key of a heap of `size`."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key
