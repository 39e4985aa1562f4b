"""The queue of requests for GPUs, and the plan of who gets which GPUs when."""
