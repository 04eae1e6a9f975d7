"""The ledger on SQLite and on PostgreSQL, driven by threads, processes and hostile data."""
