"""The training run: batches, losses, steps, checkpoints."""
