"""Layers: the file index, tars in and out, changes, and the layer store."""
