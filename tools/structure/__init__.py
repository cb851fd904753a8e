"""What ``tools/measure_structure.py`` measures: sources as syntax trees, their imports, and calls as they run."""
