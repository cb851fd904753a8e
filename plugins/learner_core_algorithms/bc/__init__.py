"""BC: configuration, loss and module."""
