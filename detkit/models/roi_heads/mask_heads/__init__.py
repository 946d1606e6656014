"""Mask heads: the shape of an object within its region."""
