"""What a run says: lines and progress in a terminal, metrics.jsonl, TensorBoard events."""
