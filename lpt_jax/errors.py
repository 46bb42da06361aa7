"""The one exception for bad input: main prints its sentence and exits with status 2."""

import contextlib


class InputError(ValueError):
    """What the user gave is wrong; the message says what, where, and what to do, in one sentence."""


@contextlib.contextmanager
def blame(sentence: str):
    """Turns whatever a file's reader raises (they raise many kinds) into one InputError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{sentence} ({reason})") from error
