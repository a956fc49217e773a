"""The run: batches, losses, steps, checkpoints."""
