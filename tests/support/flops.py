"""What a pair costs in LightGlue."""

from __future__ import annotations

from sfmprep.models.matchers.lightglue_network import LightGlueShape


def flops(shape: LightGlueShape, m: int, n: int) -> int:
    """Floating-point operations of a pair of m and n keypoints, without adaptivity.

    Counted are the products of matrices of the folded network, two operations for each
    multiplication: from descriptors and positions to the assignment's scores. Nine
    layers of 256 at 2048 keypoints are 240e9, of which attention is 155e9; as
    published, with output projections of their own, they would be 249e9.
    """
    dim, points = shape.dim, m + n
    inputs = points * shape.input_dim * dim if shape.input_dim != dim else 0
    position_dim = 4 if shape.has_scale_and_angle else 2
    rotations = points * position_dim * (dim // shape.num_heads // 2)
    # Queries, keys and values 3, perceptron 6; in the other attention 2 and 6.
    linear = points * 17 * dim**2
    attention = 2 * dim * (m**2 + n**2 + 2 * m * n)
    head = points * (dim**2 + dim) + m * n * dim
    return 2 * (inputs + rotations + shape.num_layers * (linear + attention) + head)
