"""Memories: kept durably, found by meaning, forgotten for good."""
