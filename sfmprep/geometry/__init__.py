"""Views, rays, points and tracks as arrays."""
