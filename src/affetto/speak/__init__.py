"""Using the adapters."""
