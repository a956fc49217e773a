"""What was conveyed, kept and lost, and the page that shows it."""
