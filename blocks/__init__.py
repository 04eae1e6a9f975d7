"""Where data lives, how to get in, what hardware there is."""
