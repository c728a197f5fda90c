"""The penalties, one file per family: `registry` knows them by name."""
