"""The quadtree as the paper grows it: a heap, one split at a time."""

import heapq
from collections.abc import Sequence

import numpy as np


def split_order(maps: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """(depth, y, x) of all splits in the order in which a heap pops them.

    maps: `[rows, columns]` for each splittable scale, coarse to fine. Most important first, equal
    ones coarser first, then in raster order.
    """

    def entry(depth: int, y: int, x: int) -> tuple[float, int, int, int]:
        return (-float(maps[depth][y, x]), depth, y, x)

    if not maps:
        return []
    rows, columns = maps[0].shape
    heap = [entry(0, y, x) for y in range(rows) for x in range(columns)]
    heapq.heapify(heap)
    order = []
    while heap:
        _, depth, y, x = heapq.heappop(heap)
        order.append((depth, y, x))
        if depth + 1 < len(maps):
            for dy in (0, 1):
                for dx in (0, 1):
                    heapq.heappush(heap, entry(depth + 1, 2 * y + dy, 2 * x + dx))
    return order


def nodes(maps: Sequence[np.ndarray], splits: int) -> list[tuple[int, int, int, int]]:
    """(x, y, scale, split step) of roots and quarters for the first `splits` splits."""
    order = split_order(maps)[:splits]
    step = {patch: k for k, patch in enumerate(order)}
    rows, columns = maps[0].shape
    patches = [(0, y, x) for y in range(rows) for x in range(columns)]
    for depth, y, x in order:
        patches += [(depth + 1, 2 * y + dy, 2 * x + dx) for dy in (0, 1) for dx in (0, 1)]
    scales = len(maps)
    return [
        (x << (scales - depth), y << (scales - depth), scales - depth, step.get((depth, y, x), -1))
        for depth, y, x in patches
    ]


def leaves_above(maps: Sequence[np.ndarray], threshold: float) -> set[tuple[int, int, int]]:
    """(x, y, scale) of the leaves when every patch splits that is, with all above it, >= t."""
    scales = len(maps)
    found = set()

    def visit(depth: int, y: int, x: int) -> None:
        if depth < scales and maps[depth][y, x] >= threshold:
            for dy in (0, 1):
                for dx in (0, 1):
                    visit(depth + 1, 2 * y + dy, 2 * x + dx)
        else:
            scale = scales - depth
            found.add((x << scale, y << scale, scale))

    rows, columns = maps[0].shape
    for y in range(rows):
        for x in range(columns):
            visit(0, y, x)
    return found
