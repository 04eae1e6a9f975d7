"""What runs on a device: the panel (buttons, lights), its status, and a Prefect worker. See `agent.py`."""
