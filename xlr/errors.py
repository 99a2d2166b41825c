"""The exception for bad input."""


class UserError(Exception):
    """Bad input: a message that names the file, line or key, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
