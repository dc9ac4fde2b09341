"""Atomic writes, file locks, the cache folder, and reading lines of untrusted files."""
