"""The command line, one module per command: its help and arguments (`SUMMARY`, `EXAMPLES`, `add_arguments`), and `run`,
which calls the package and prints the result. Input that cannot be used gives one line on standard error and exit code
2. JAX and NumPy are imported only by commands that run.
"""
