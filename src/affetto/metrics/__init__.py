"""Definitions of the metrics and their statistics, without files or models."""
