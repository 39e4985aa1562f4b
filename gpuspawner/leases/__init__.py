"""Who holds which GPUs, and until when."""
