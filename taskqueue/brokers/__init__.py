"""The backends: loaded by URL, strangers to each other."""
