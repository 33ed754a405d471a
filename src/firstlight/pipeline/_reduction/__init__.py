"""What becomes of the results: records, their stream, reducers and their state."""
