"""Systems evaluated on the same sentences: what was conveyed, kept and lost (docs/results.md)."""
