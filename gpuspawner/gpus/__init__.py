"""What GPUs there are, and which of them to hand out."""
