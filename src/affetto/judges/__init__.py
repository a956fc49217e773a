"""Models that hear: what was felt, what was said, how good it sounds, whose voice it is."""
