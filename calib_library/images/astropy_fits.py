"""The lock under which astropy's FITS is called, for what is rare enough to leave to it."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

_LOCK = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Call astropy without its warnings, one thread at a time: `catch_warnings` is not safe across
    threads.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
