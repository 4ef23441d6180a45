"""Plugins: found and judged without importing them, loaded from verified bytes; the only user of pluggy.

`aios.registry.catalog.Catalog` is the parent's (and the command line's) view: states, grants, quarantine.
`aios.registry.registry.Registry` is the worker's: the loaded plugins and their hooks.

Reading order: manifest, content, discovery, catalog | snapshot, registry | check, scaffold.
"""
