"""Event logs: raw lines, templates, sessions, and their tokens."""
