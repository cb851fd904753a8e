"""Learners as Ray actors. Nothing here imports Ray before a group is built."""
