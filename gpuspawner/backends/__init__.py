"""What starts servers and keeps the labels on them."""
