"""Files that are there whole or not at all, locked while written, and read within limits."""
