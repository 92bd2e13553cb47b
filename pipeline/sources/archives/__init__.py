"""Archives as sources: which images lie in one, and their bytes, without unpacking it."""
