"""A step that went wrong: what its batch held, and the bundle that does it again elsewhere."""
