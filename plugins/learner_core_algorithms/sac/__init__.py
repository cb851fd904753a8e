"""SAC: configuration, loss and module."""
