"""Speed and memory, as `purinet benchmark` measures them: JSON values, medians, with the machine and the settings. What
developers measure besides is in the folder `benchmarks` of the repository.
"""
