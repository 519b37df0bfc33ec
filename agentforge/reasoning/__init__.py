"""Reasoning examples: ten strategies in one table, one schema, three sources, sets on disk."""
