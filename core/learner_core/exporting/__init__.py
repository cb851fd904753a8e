"""Weights and policies in other people's formats, and theirs in ours."""
