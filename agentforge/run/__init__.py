"""One run on disk: directory, manifest, lock, control channel, checkpoints, worker, supervisor."""
