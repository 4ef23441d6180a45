"""Benches, evaluations and campaigns: one file each, listed in `catalogue`, every result a row in the ledger."""
