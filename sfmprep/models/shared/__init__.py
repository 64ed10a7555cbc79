"""What several networks need: batches, memory, precision, sampling."""
