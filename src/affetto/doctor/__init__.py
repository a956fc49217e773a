"""What is wrong with a run: the guide's troubleshooting, applied to the run's own files."""
