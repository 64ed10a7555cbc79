"""From photographs to features, from pairs to matches."""
