"""The small world that affetto ships, and the recipe that makes it."""
