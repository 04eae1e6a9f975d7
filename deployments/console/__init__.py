"""The console: the process of `onblock up` that the world outside speaks to."""
