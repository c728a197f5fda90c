"""Whether a kernel that uses the order of an n:m:g weight is faster than panels."""
