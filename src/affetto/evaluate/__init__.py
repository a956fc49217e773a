"""Systems on the same sentences: what was conveyed, kept and lost, written as docs/results.md has it."""
