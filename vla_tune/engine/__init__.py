"""The engine: it takes a learner's batches and a method's losses through backward passes, updates, checkpoints and the log."""
