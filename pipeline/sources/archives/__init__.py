"""Lists the images in an archive, and reads their bytes without unpacking it.

In: an archive that storage can read: tar, zip, Parquet or Arrow.
Out: an index of its members; the bytes of a member.
May import: entries, storage and below.
"""
