"""What `purinet benchmark` measures, one module per room. Each gives JSON: medians, and ratios to something that
is timed in turn in the same run, since a machine's own speed drifts.
"""
