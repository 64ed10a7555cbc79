"""Photographs of a capture: files, headers, masks, batches for networks."""
