"""Who registers more, more exactly, sooner: sfmprep and COLMAP on the same files."""
