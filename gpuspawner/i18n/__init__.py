"""Translations of pages and messages to the user's language."""
