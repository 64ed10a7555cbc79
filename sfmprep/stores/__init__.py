"""What stages leave for each other on disk: ragged tables in HDF5."""
