"""Ends a training process without waiting for gloo, whose threads may abort or hang it.

After DistributedDataParallel has trained on CPUs, a gloo thread may still hold an object whose
release needs the interpreter's lock. While the interpreter shuts down, that thread is ended
("terminate called without an active exception"), or the main thread waits for it for ever, although
the run was correct (https://github.com/pytorch/pytorch/issues/190489, open in torch 2.14). Neither
a barrier nor `destroy_process_group` prevents it; leaving before the interpreter shuts down does.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable

__all__ = ["run_and_exit"]


def run_and_exit(main: Callable[[], object]) -> None:
    """Call a script's main function; on several CPU processes, end this process after it.

    The process ends as Python ends it: other threads finish, functions registered with `atexit`
    run, output is flushed, and the exit status is that of `main` (0, the code of `sys.exit`, or 1
    after a traceback). Only the interpreter's own shutdown is left out. In a single process, or
    where CUDA is used, this is a plain call of `main`.

    Args:
        main: takes no arguments; its result is ignored.

    Example:
        >>> if __name__ == "__main__":
        ...     run_and_exit(main)
    """
    status: object = 0
    try:
        main()
    except SystemExit as stop:
        if not _has_gloo_threads():
            raise
        status = stop.code
    except Exception:
        if not _has_gloo_threads():
            raise
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    if _has_gloo_threads():
        _exit(status)


def _has_gloo_threads() -> bool:
    """Whether this is one of several processes on CPUs.

    Asks the launcher's variable too: the threads outlive the process group.
    """
    torch = sys.modules.get("torch")
    if torch is None or torch.cuda.is_initialized():
        return False
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_world_size() > 1)
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def _exit(status: object) -> None:
    """What multiprocessing does at the end of the processes that it starts."""
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status or 0)
