"""HTML pages and pictures: a run, systems side by side, a collection of clips."""
