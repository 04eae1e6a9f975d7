"""What happens: transfers, capture, upkeep."""
