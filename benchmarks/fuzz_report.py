"""Stub."""
def report(rng, folder): pass
