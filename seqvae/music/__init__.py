"""Music: readers, pieces on a grid, tokens, statistics of notes, sound and pictures."""
