"""From clips to frames of codes, and back."""
