"""Layers that all heads of a region share."""
