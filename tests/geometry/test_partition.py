"""Graphs of views cut into parts."""

from __future__ import annotations

import numpy as np
import pytest

from sfmprep.geometry.partition import cut, widened
from sfmprep.types import Index


def clusters(sizes: tuple[int, ...], *, bridge: int = 1) -> tuple[Index, Index]:
    """Complete graphs in a row, each joined with the next by one weak edge."""
    edges, weights, start = [], [], 0
    for size in sizes:
        if start:
            edges.append((start - 1, start))
            weights.append(bridge)
        for i in range(start, start + size):
            edges += [(i, j) for j in range(i + 1, start + size)]
            weights += [100] * (start + size - i - 1)
        start += size
    return np.array(edges), np.array(weights)


def grid(side: int) -> tuple[Index, Index]:
    number = np.arange(side * side).reshape(side, side)
    right = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1)
    down = np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1)
    edges = np.concatenate([right, down])
    return edges, np.full(len(edges), 50)


@pytest.mark.parametrize("size", [8, 50])  # dense and sparse eigenvectors
def test_the_cut_goes_through_the_weak_edge(size: int) -> None:
    edges, weights = clusters((size, size + 1))
    parts = cut(2 * size + 1, edges, weights, size=size)
    assert [part.tolist() for part in parts] == [
        list(range(size, 2 * size + 1)),
        list(range(size)),
    ]


def test_parts_are_balanced_and_hold_every_view_once() -> None:
    edges, weights = grid(30)
    parts = cut(900, edges, weights, size=100)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(900))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= 150 and min(sizes) >= 50
    owner = np.empty(900, int)
    for number, part in enumerate(parts):
        owner[part] = number
    # straight cuts through a grid of 30 x 30 into 3 x 3 parts cut 120 edges
    assert (owner[edges[:, 0]] != owner[edges[:, 1]]).sum() < 240


def test_sixty_views_are_cut_into_three_parts_of_twenty() -> None:
    edges = np.array([(i, j) for i in range(60) for j in range(i + 1, min(i + 6, 60))])
    parts = cut(60, edges, np.full(len(edges), 10), size=20)
    assert sorted(len(part) for part in parts) == [20, 20, 20]


def test_what_is_not_joined_is_never_in_one_part() -> None:
    edges, weights = clusters((5, 4), bridge=1)
    apart = weights > 1
    parts = cut(12, edges[apart], weights[apart], size=100)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_no_edge_gives_no_part() -> None:
    assert cut(4, np.empty((0, 2), np.int64), np.empty(0, np.int64), size=2) == []


def test_parts_are_widened_by_what_holds_most_to_them() -> None:
    edges = np.array([[0, 1], [1, 2], [2, 3], [1, 3], [3, 4]])
    weights = np.array([90, 30, 90, 20, 90])
    parts = [np.array([0, 1]), np.array([2, 3, 4])]
    wide = widened(parts, 5, edges, weights, overlap=1)
    assert [part.tolist() for part in wide] == [[0, 1, 2], [1, 2, 3, 4]]
    wide = widened(parts, 5, edges, weights, overlap=5)
    assert [part.tolist() for part in wide] == [[0, 1, 2, 3], [1, 2, 3, 4]]
