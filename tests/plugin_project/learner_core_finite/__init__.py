"""A complete backend in thirty lines: numpy, with gradients by central differences. For tests of the interface only."""
