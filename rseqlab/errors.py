"""The errors that the lab raises. Each says what was attempted, the value seen and the next step."""


class LabError(Exception):
    """Something the user can act on. The command line prints it and exits with 1."""


class UsageError(LabError):
    """Asked for something that does not exist. The command line exits with 2."""
