"""Clips to frames of codes, and back."""
