"""Sentences: lines of files, and their tokens."""
