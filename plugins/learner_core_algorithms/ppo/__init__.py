"""PPO: configuration, loss and module."""
