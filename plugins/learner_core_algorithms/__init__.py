"""The algorithms that come with learner-core: one folder each, configuration, loss and README."""
