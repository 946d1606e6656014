"""Losses that several dense heads share, or that follow from predictions in a way of their own."""
