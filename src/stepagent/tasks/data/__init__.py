"""Data files of benchmarks: downloaded, unpacked and read within limits."""
