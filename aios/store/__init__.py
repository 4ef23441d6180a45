"""Models on disk: records, integrity, listing, opening, pulling. Imports no torch by itself."""
