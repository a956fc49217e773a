"""Bases: loading, rows, batches and logits."""
