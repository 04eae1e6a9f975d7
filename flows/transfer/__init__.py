"""Transfer jobs: scan, gate, plan, deliver, verify. Read `flow.py` first."""
