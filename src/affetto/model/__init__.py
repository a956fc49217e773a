"""Base models: loading, rows, batches, logits and losses."""
