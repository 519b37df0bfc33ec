"""Phase 1, Cognate: one base, three mergeable specialists, their measured diversity."""
