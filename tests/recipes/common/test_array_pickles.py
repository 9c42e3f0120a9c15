import gzip
import pickle
import re

import numpy as np
import pytest

from recipes.common.array_pickles import read_array


class Attack:
    def __reduce__(self):
        return print, ("unpickled",)


def write(path, value, protocol=pickle.DEFAULT_PROTOCOL):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        pickle.dump(value, file, protocol=protocol)
    return path


@pytest.mark.parametrize("name", ["a.gz", "a.pickle"])
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_array_is_read_as_written(tmp_path, name, protocol, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    read = read_array(write(tmp_path / name, array, protocol))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_array_of_numpy_1_or_2_is_read(tmp_path, module):
    # Protocol 3 names globals in lines of text, so the module's name may change in length.
    content = re.sub(rb"numpy\._?core", module, pickle.dumps(np.arange(3), protocol=3))
    assert module in content
    (tmp_path / "a.pickle").write_bytes(content)
    assert read_array(tmp_path / "a.pickle").tolist() == [0, 1, 2]


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, capsys):
    file = write(tmp_path / "attack.gz", Attack())
    with pytest.raises(ValueError, match=r"attack\.gz is no pickled array: it names .*print"):
        read_array(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [[1, 2], np.array([{}], dtype=object)], ids=["list", "objects"])
def test_value_that_is_no_array_of_numbers_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not an array of numbers"):
        read_array(write(tmp_path / "a.gz", value))


def test_truncated_file_is_refused(tmp_path):
    file = write(tmp_path / "a.pickle", np.arange(100))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match="is no pickled array"):
        read_array(file)
