"""Importers and exporters of other projects' trajectory formats, one module per format."""
