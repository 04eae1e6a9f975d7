"""Recordings made on the machine that the cameras and sensors are bolted to. The story is in `recorder.py`."""
