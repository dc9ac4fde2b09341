"""The benchmarks: items, text environments and experts behind one protocol (see `base`)."""
