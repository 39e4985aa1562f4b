"""Courses: who is in them, what their servers may be, their material and their repository."""
