"""The pure step and the Learner around it."""
