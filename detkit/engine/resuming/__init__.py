"""How a run goes on: from which checkpoint, and what of its state."""
