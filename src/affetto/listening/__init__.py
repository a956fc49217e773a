"""Blinded listening tests with people, and the count of their votes."""
