"""A dark that is made of several masters, as a flat has it subtracted."""

import dataclasses

import numpy as np
import numpy.typing as npt

from calib_library.dark_model import DarkPlan
from calib_library.match import MasterRecord, seconds

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Mixed:
    """An image (ny, nx) that is a weighted sum of others, made where it is looked at.

    The flats of a twilight have each an exposure of their own, and all their darks are made of the
    same two.
    """

    parts: tuple[tuple[float, Floats], ...]
    """(share, image): the shares sum to one."""

    def __getitem__(self, where: slice | tuple[slice, slice], /) -> Floats:
        """Make the values at an index of numpy's, ADU, a new array."""
        (share, image), *others = self.parts
        total: Floats = image[where] * np.float32(share)
        for share, image in others:
            total += image[where] * np.float32(share)
        return total


@dataclasses.dataclass(frozen=True, slots=True)
class MadeDark:
    """What is subtracted from one flat."""

    plan: DarkPlan
    image: Mixed
    nearest: MasterRecord
    """The master that counts most, under which it is recorded."""

    @property
    def mark(self) -> str:
        """What its pixels depend on."""
        return repr((self.plan.exposure_s, self.plan.legs, self.plan.energies))

    @property
    def told(self) -> str:
        """How it is made, for a person."""
        names = " and ".join(
            f"{weight:.2f} of {source.name}" for source, weight, _ in self.plan.weights
        )
        return f"for {seconds(self.plan.exposure_s)} a dark was made: {names}"
