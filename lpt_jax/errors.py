"""The one exception for bad input: main prints its sentence and exits with status 2."""


class InputError(ValueError):
    """What the user gave is wrong; the message says what, where, and what to do, in one sentence."""
