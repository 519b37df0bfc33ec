"""Optimisation: Muon x Grokfast beside AdamW, one schedule, QK-clip, loss scaling."""
