"""The four phases; each is one readable sequence with its own small files beside it."""
