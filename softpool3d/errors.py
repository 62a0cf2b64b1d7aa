"""The errors that a user can cause and mend: printed by the command line as one sentence, without a traceback."""

DEBUG = "SOFTPOOL3D_DEBUG"  # an environment variable; if it is set, errors show their tracebacks too


class SoftPool3dError(Exception):
    """Base of the errors whose text is meant for the user: what is wrong, where, and what to do."""

    exit_code = 1
    told_elsewhere = False  # whether another process of the same run prints it


class UsageError(SoftPool3dError):
    """The request itself is wrong (an unknown key, a missing file or folder): nothing was done. Exit code 2."""

    exit_code = 2


class WorkError(SoftPool3dError):
    """The request was fine, but some of the work failed (a file that cannot be decoded). Exit code 1."""


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error of others says, without a full stop; of a silent one, its type."""
    said = str(error).strip()
    return said.splitlines()[0].rstrip(".") if said else type(error).__name__


def os_reason(error: OSError) -> str:
    """Returns what the system says of an error, in lower case: no space left on device."""
    return (error.strerror or str(error)).lower()
