"""State trees: structure, the file format (docs/format.md), files on disk, inspection.

Needs numpy, msgpack and xxhash; ml_dtypes only where bfloat16 or float8 occur. Imports no framework.
"""
