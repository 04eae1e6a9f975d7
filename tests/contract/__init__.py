"""The contract of `blocks/storage/base.py`, as tests that every storage passes.

A storage joins in `places.py` with a factory of a few lines. A test asks `features` before it demands an optional
ability, and where a storage lacks it, demands what the contract says then: nothing is skipped.
"""
