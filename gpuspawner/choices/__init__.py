"""Choices: what users may choose, the check of what they chose, and the spawn form."""
