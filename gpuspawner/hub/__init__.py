"""What the hub's process shares and shows."""
