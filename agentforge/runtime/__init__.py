"""Running models: one plan, several executors."""
