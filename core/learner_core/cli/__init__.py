"""The `learner-core` command."""
