"""Transfer jobs: scan, gate, plan, deliver, verify. Read `story.py` first."""
