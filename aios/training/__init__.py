"""Training: data, objectives, optimiser, loop and plans, and a run's weights as a model."""
