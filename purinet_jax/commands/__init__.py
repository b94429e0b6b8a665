"""The command line, one module per command: what it takes (`SUMMARY`, `EXAMPLES`, `add_arguments`) and what it does
(`run`: one call of the package, what it returns printed). What the user gave and cannot be used is one line on stderr
and exit code 2. Nothing here imports JAX or NumPy before a command has something to do with them.
"""
