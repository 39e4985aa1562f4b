"""Who used what: each lease's time, wait, end and use, in a store that outlives hub and engine."""
