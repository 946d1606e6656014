"""Heads over regions of interest; so far, their losses."""
