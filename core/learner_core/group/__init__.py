"""LearnerGroup: one learner, or several that compute what one computes."""
