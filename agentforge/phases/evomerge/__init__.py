"""Phase 2: three models of one base become one, by a search over recipes of merges."""
