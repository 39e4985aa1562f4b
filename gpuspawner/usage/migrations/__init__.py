"""The migrations of the store. A revision that was released never changes."""
