"""The benchmarks of `make bench`: medians and ratios of figures from the same run."""
