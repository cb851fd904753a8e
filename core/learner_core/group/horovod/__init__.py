"""Horovod as learner-core uses it: built for the installed frameworks, launched without its own launcher."""
