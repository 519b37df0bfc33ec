"""Typed configuration: schema, loading with precedence, and where each value came from."""
