"""Sentences: lines of text files, and their tokens."""
