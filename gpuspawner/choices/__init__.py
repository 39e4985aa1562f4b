"""What a user may choose, and what they chose."""
