"""The Torch backend of learner-core."""
