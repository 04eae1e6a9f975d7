"""What goes wrong in the field, done on purpose to real processes."""
