"""The one exception for what a user gave and the program cannot use.

Its message is one line that names the file, key or value; the command line prints it and exits with code 2.
"""


class InputError(ValueError):
    """A file, folder, option or configuration that cannot be used; the message names it in one line."""
