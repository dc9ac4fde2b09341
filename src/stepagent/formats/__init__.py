"""Trajectories in the formats of other projects: importers and exporters, one module for each."""
