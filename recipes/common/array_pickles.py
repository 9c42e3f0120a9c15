"""Read NumPy arrays from pickles of strangers, and nothing else.

    images = read_array("animal_data.gz")

Unpickling runs whatever code a file names. This reader admits the three names of which a pickled
array consists and refuses all others, so a changed file can at worst hold other numbers.
"""

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_array"]

# NumPy 1 and 2 call the module of the first by different names; an array of either names its own.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Admit what an array needs."""
        if (module, name) not in _ADMITTED:
            raise ValueError(f"it names {module}.{name}, which no array needs.")
        return _ADMITTED[module, name]


def read_array(path: str | Path) -> np.ndarray:
    """Return the array in a pickle of protocol 3 or 4, gzipped or not.

    Raises:
        ValueError: the file is no pickle of an array, holds objects in place of numbers, or names
            anything that an array does not need.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            array = _ArrayUnpickler(file).load()
    except (ValueError, pickle.UnpicklingError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no pickled array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise ValueError(f"{path} holds {type(array).__name__}, not an array of numbers.")
    return array
