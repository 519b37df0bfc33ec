"""Reasoning examples from an OpenAI-compatible endpoint: calls, cost, journal, resume."""
