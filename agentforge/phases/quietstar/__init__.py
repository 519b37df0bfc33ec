"""Phase 3, Quiet-STaR: prompt baking, reinforcement of thoughts, and tests that they are real."""
