"""Layers of dense heads."""
