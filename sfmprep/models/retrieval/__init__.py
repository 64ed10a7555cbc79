"""Networks that describe a whole image by one row."""
