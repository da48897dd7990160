"""The networks: tensors in, tensors out. Out of scope: music, sentences and logs."""
