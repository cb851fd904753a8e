"""``launcher="spmd"``: no driver; every rank runs the same script and has one learner in its own process."""
