"""IMPALA: configuration and loss."""
