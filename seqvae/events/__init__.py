"""Event logs: raw lines, templates, sessions and tokens."""
