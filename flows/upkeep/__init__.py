"""What is done with files after they are delivered: cleanup of the source, retention, scrub."""
