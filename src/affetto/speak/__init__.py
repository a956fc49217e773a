"""Speaking with a base and its adapters: whole sentences, streams, batches."""
