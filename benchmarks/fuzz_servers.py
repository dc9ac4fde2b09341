"""Stub."""
def serve(rng, folder): pass
def openenv(rng, folder): pass
def agentgym(rng, folder): pass
def chat(rng, folder): pass
