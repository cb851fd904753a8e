"""APPO: configuration and loss."""
