"""The engine: one entrance (arrow), a router to plans, a pipeline to answers, an assembly of what they need.

Reading order: blame, assembly, encoding, router, pipeline, arrow.
"""
