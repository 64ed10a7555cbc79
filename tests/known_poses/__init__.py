"""Known poses."""
