"""Benchmarks: onblock against rclone, rsync, cp and sha256sum. `python -m tests.benchmarks.run` starts them."""
