"""Compression of whole models: calibration, sensitivity, a budget of bits, and the recipe that writes a new model."""
