"""Train, evaluate, save and restore: the whole of a run."""
