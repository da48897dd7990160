"""The networks: tensors in, tensors out, and no word about music, sentences or logs."""
