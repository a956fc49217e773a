"""Pages and pictures: what a run did, systems side by side, a collection of clips."""
