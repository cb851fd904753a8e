"""State trees, their file format and checkpoint folders."""
