"""Listening tests for people: made, blinded, and their votes counted."""
