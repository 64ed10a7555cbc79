"""What a run found: report.json, and report.html for people."""
