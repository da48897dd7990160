"""A model's folder: written whole, loaded strictly, found by its released name or Hub id."""
