"""What a run changes in its model: compilation, activation checkpointing, statistics of batch norms."""
