"""`make bench`: figures side by side from one run, as medians and ratios."""
