"""Training: data, objective, optimiser and loop, and the command that makes the embedded default model."""
