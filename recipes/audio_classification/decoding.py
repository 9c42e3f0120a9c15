"""From files of any kind to 16-bit mono at one rate: in parallel, cached, the bad ones counted."""

import importlib
import io
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from datasets import Dataset, Features, Sequence, Value

__all__ = ["DROPPED", "decode", "decode_all"]

logger = logging.getLogger(__name__)

LARGEST = 32767  # of 16 bits: half the disk of float32, and no worse than the sources
# What can be wrong with a file. The first four leave nothing to train on, so the clip is dropped.
DROPPED = ("missing", "corrupt", "empty", "unlabelled")
NOTED = ("silent", "short", "stereo", "resampled", "clipped")
ALWAYS_TOLD = ("short", "resampled")
REMARKS = {
    "missing": "not there",
    "corrupt": "undecodable, or not finite",
    "empty": "without a sample",
    "unlabelled": "without a label of this task",
    "silent": "silent throughout",
    "short": "shorter than the model's input, padded",
    "stereo": "averaged to mono",
    "resampled": "resampled",
    "clipped": "louder than full scale, clipped",
}
EXAMPLES = 5  # names of dropped files that are shown
_ROWS_A_WRITE = 64  # a minute of audio is 2 MB: the default of 1000 rows would fill the memory


def decode(path: str | None, content: bytes | None, rate: int) -> tuple[np.ndarray, list[str]]:
    """Read one file.

    soundfile reads wav, flac, ogg and mp3 with what its wheel brings. What it cannot read (aac,
    webm, m4a) is given to torchcodec, where that is installed and finds its libraries.

    Args:
        path: where the file is; used when there is no content.
        content: the file itself, as datasets of the Hub carry it.
        rate: samples a second to return.

    Returns:
        The samples, int16, and what there is to remark: keys of `REMARKS`.
    """
    if content is None and not (path and Path(path).is_file()):
        return _nothing("missing")
    source = io.BytesIO(content) if content is not None else path
    try:
        waveform, found_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError):
        read = _decode_torchcodec(content if content is not None else path)
        if read is None:
            return _nothing("corrupt" if (content is None or content) else "empty")
        waveform, found_rate = read
    remarks = []
    if waveform.shape[0] == 0:
        return _nothing("empty")
    if not np.isfinite(waveform).all():
        return _nothing("corrupt")
    if waveform.shape[1] > 1:
        remarks.append("stereo")
    mono = waveform.mean(axis=1)
    if found_rate != rate:
        remarks.append("resampled")
        mono = soxr.resample(mono, found_rate, rate)
        if mono.size == 0:
            return _nothing("empty")
    if not mono.any():
        remarks.append("silent")
    # Resampling and mp3 overshoot by a little; what is remarked is audible.
    if np.abs(mono).max() > 1.1:
        remarks.append("clipped")
    return np.rint(mono.clip(-1, 1) * LARGEST).astype(np.int16), remarks


def _nothing(why: str) -> tuple[np.ndarray, list[str]]:
    return np.zeros(0, dtype=np.int16), [why]


def _decode_torchcodec(source: bytes | str | None) -> tuple[np.ndarray, int] | None:
    """Return (samples, channels) and the rate, or None where torchcodec cannot."""
    try:
        decoder = importlib.import_module("torchcodec.decoders").AudioDecoder(source)
        samples = decoder.get_all_samples()
    # It raises OSError or RuntimeError at import without its libraries, and others on bad files.
    except Exception:
        return None
    return samples.data.T.numpy(), samples.sample_rate


def _decode_row(row: dict[str, Any], rate: int, shortest: int) -> dict[str, Any]:
    path = row["audio"]["path"]
    if row["labels"] is None:
        samples, remarks = _nothing("unlabelled")
    else:
        samples, remarks = decode(path, row["audio"]["bytes"], rate)
    if 0 < samples.size < shortest:
        remarks.append("short")
    return {"samples": samples, "remarks": remarks, "path": path}


def decode_all(
    dataset: Dataset,
    *,
    rate: int,
    shortest: int,
    num_proc: int | None = None,
    name: str = "audio",
    shown: bool = False,
) -> Dataset:
    """Decode a dataset's files once; another run with the same files finds them in the cache.

    Args:
        dataset: rows with `audio` ({"path", "bytes"}), and `labels`.
        rate: samples a second.
        shortest: samples below which a clip counts as short.
        num_proc: processes to decode with; None is this one. Default: None.
        name: of the split, for the progress bar and the report.
        shown: whether to print the report; one with dropped files is a warning in any case.

    Returns:
        The rows that can be used, with `samples` (int16) in place of `audio`.

    Raises:
        ValueError: no file can be used.
    """
    features = Features(
        {k: v for k, v in dataset.features.items() if k != "audio"}
        | {"samples": Sequence(Value("int16")), "remarks": Sequence(Value("string"))}
        | {"path": Value("string")}
    )
    decoded = dataset.map(
        _decode_row,
        fn_kwargs={"rate": rate, "shortest": shortest},
        remove_columns=["audio"],
        features=features,
        num_proc=num_proc,
        writer_batch_size=_ROWS_A_WRITE,
        desc=f"decode {name}",
    )
    remarks = list(decoded["remarks"])
    line = report(name, remarks, list(decoded["path"]))
    kept = [i for i, found in enumerate(remarks) if not set(found) & set(DROPPED)]
    if not kept:
        raise ValueError(f"{line} Nothing is left to use; check the path.")
    if len(kept) < len(decoded):
        logger.warning(line)
    elif shown:
        print(line)
    return decoded.select(kept).remove_columns(["remarks", "path"])


def report(name: str, remarks: Iterable[list[str]], paths: list[str | None]) -> str:
    """Say in one line what was found, and name some of the files that were dropped."""
    remarks = list(remarks)
    counts = Counter(remark for found in remarks for remark in set(found))
    dropped = [i for i, found in enumerate(remarks) if set(found) & set(DROPPED)]
    # Whether clips were resampled or padded is worth knowing also where none was.
    told = (*DROPPED, *NOTED)
    parts = [f"{counts[r]:,} {REMARKS[r]}" for r in told if counts[r] or r in ALWAYS_TOLD]
    line = f"{name}: {len(remarks) - len(dropped):,} of {len(remarks):,} files"
    line += f" ({'; '.join(parts)})."
    if dropped:
        line += " Dropped: " + ", ".join(str(paths[i]) for i in dropped[:EXAMPLES])
        line += ", ...." if len(dropped) > EXAMPLES else "."
    return line
