"""What a run suffers from: the guide's troubleshooting, read off the run's own files."""
