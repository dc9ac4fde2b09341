"""What `import stepagent` offers; the names themselves are listed in `stepagent/__init__.py`."""
