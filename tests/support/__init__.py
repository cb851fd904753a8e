"""Helpers that several suites share; importable as `support` (pytest's `pythonpath`)."""
