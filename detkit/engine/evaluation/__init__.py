"""Validation and test: their loops, the evaluator, losses on validation data."""
