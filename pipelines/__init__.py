"""How a run goes, from top to bottom; copy one to change it."""
