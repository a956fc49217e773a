"""The small world that affetto ships (corpus, codec, base and judges), and the recipe that makes it."""
