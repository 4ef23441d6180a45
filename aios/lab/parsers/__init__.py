"""Hostile input for everything that reads bytes from outside: corpus, mutations, targets, and the worker process."""
