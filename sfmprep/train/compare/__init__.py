"""Our weights against others, in one table."""
