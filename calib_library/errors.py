"""What can be wrong with a frame or a request, as sentences for a person."""


class LibraryError(Exception):
    """Base of this package's errors. `str()` is one clear sentence for the user."""


class ImageError(LibraryError):
    """The file is not an image this program can use, for good: what is wrong and what to do."""


class IncompleteImageError(ImageError):
    """The file is not whole *yet*: a writer may still be at work on it. Look again later."""


class HeaderError(LibraryError):
    """The header does not say what is needed (a type, an exposure), or contradicts itself."""


class NoMatchingMasterError(LibraryError):
    """No master fits; the sentence tells which rule refused the nearest one."""


class IncompatibleFramesError(LibraryError):
    """Frames that must not be combined: different geometry, storage or scale."""
