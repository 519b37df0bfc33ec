"""Measurements on held-out data: loss, exact match, choice tasks, baselines, statistics."""
