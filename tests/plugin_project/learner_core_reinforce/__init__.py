"""REINFORCE as a third party would write it: one file for the algorithm, one for the entry point."""
