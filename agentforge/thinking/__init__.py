"""Thoughts: sampled, read, rewarded and tested. What Phase 3 trains and everyone may use."""
