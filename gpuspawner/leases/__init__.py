"""Leases: which server holds which GPUs, and until when."""
