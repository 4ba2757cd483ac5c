"""The one exception that a user may see without a traceback."""


class UserError(Exception):
    """Something in the user's input is wrong.

    The message names the place (file:line where there is one), what was given, what is allowed, the nearest
    match, and how to mend it; the CLI prints it alone and exits with 2."""
