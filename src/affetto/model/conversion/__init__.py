"""Checkpoints of the `moshi` package to transformers' format, tensor by tensor."""
