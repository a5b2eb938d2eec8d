"""Formats that can't be imported."""

raise SystemExit("missing on purpose")
