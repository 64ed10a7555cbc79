"""Where jobs run: processes of this machine. Knows jobs, not features."""
