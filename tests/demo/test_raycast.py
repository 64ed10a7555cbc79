"""Intersections, light and visibility of the ray caster."""

from __future__ import annotations

import numpy as np
import pytest

from sfmprep.demo.raycast import (
    Cylinder,
    Light,
    Rectangle,
    Sphere,
    look_at,
    render_image,
    with_light,
)

WHITE = np.full((16, 16, 3), 255, np.uint8)
SKY = np.full((2, 1, 3), 7, np.uint8)
SUN = Light(
    directions=np.array([[0.0, 0.0, 1.0]]),
    colours=np.full((1, 3), 0.75),
    ambient=np.full(3, 0.25),
)


def level(side: float, height: float, texture=WHITE) -> Rectangle:
    return Rectangle(
        texture=texture,
        corner=np.array([-side / 2, side / 2, height]),
        right=np.array([side, 0.0, 0.0]),
        down=np.array([0.0, -side, 0.0]),
    )


SURFACES = [
    level(2, 0.5),
    Cylinder(texture=WHITE, foot=np.array([1.0, 2, 0]), radius=0.7, height=1.5),
    Sphere(texture=WHITE, centre=np.array([-1.0, 0, 2]), radius=0.8),
]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: type(s).__name__)
def test_a_ray_onto_a_sample_hits_it_at_its_u_and_v(surface):
    u, v = np.random.default_rng(0).uniform(0.02, 0.98, (2, 200))
    points, normals = surface.sample(u, v)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1)
    # from two metres off, a little aslant
    origin = points + 2 * normals + np.array([[0.1], [0.2], [-0.1]])
    rays = (points - origin).astype(np.float32)
    depth, u_hit, v_hit = surface.hit(origin.astype(np.float32), rays)
    np.testing.assert_allclose(depth, 1, atol=1e-4)
    np.testing.assert_allclose(u_hit, u, atol=1e-4)
    np.testing.assert_allclose(v_hit, v, atol=1e-4)
    behind, _, _ = surface.hit(origin.astype(np.float32), -rays)
    assert np.isinf(behind).all()


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: type(s).__name__)
def test_the_extent_holds_all_samples(surface):
    u, v = np.random.default_rng(0).uniform(0, 1, (2, 200))
    points, _ = surface.sample(u, v)
    outside_low = surface.extent.min(axis=0) - points.T.min(axis=0)
    outside_high = points.T.max(axis=0) - surface.extent.max(axis=0)
    assert outside_low.max() < 1e-9
    assert outside_high.max() < 1e-9


def test_rays_that_miss_have_infinite_depth():
    origin = np.array([[5.0], [5.0], [5.0]], np.float32)
    ray = np.array([[1.0], [0.0], [0.0]], np.float32)
    for surface in SURFACES:
        assert np.isinf(surface.hit(origin, ray)[0]).all()


def test_the_nearer_surface_is_seen_in_any_order():
    below, above = level(8, 0.0), level(2, 1.0, np.full((8, 8, 3), 100, np.uint8))
    camera = look_at(np.array([0.0, -0.5, 5]), np.zeros(3), (64, 64))
    one, two = (
        render_image(order, camera, SKY) for order in ([below, above], [above, below])
    )
    np.testing.assert_array_equal(one, two)
    assert one[32, 32, 0] == 100
    assert one[32, 10, 0] == 255


def test_nothing_to_see_is_sky():
    camera = look_at(np.array([0.0, -3, 1]), np.zeros(3), (64, 48))
    image = render_image([], camera, SKY)
    assert image.shape == (48, 64, 3)
    assert (image == 7).all()


def test_a_rectangle_is_not_seen_from_behind():
    camera = look_at(np.array([0.0, -1, -4]), np.zeros(3), (64, 48))
    assert (render_image([level(4, 0.0)], camera, SKY) == 7).all()


def test_what_lies_under_another_surface_is_in_shadow():
    floor, roof = with_light([[level(4, 0.0)], [level(1, 1.0)]], SUN, 0.1)
    texture = floor.texture[:, :, 0]
    assert (roof.texture == 255).all()
    assert texture[0, 0] == 255
    # a quarter of the light, as displayed
    assert abs(texture[8, 8] - 255 * 0.25 ** (1 / 2.2)) < 2


def test_the_focal_length_is_085_widths_and_the_target_is_in_the_middle():
    target = np.array([0.3, 0.7, 1.1])
    camera = look_at(np.array([3.0, -4, 2]), target, (200, 100), roll_deg=5)
    xy, depth = camera.project(target[None])
    np.testing.assert_allclose(xy, [[100, 50]], atol=1e-9)
    np.testing.assert_allclose(depth, np.linalg.norm(camera.centre - target))
    assert camera.intrinsics[0, 0] == camera.intrinsics[1, 1] == pytest.approx(170)
    np.testing.assert_allclose(np.linalg.det(camera.rotation), 1)
    # a roll clockwise moves what is above the target to the left
    above, _ = camera.project((target + [0, 0, 0.3])[None])
    assert above[0, 0] < 100
    assert above[0, 1] < 50
