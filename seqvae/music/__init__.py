"""Music: readers, pieces on a grid, tokens, what notes say about a song, sound and pictures."""
