"""Networks, distributions, optimizers, returns and noise: pure functions over `xp`."""
