"""The training step and the Learner around it, written once over the array namespace ``xp``."""
