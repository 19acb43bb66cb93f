"""A cell of a notebook without a notebook: IPython's shell, told that it has a kernel."""

import contextlib
import sys

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config


@contextlib.contextmanager
def cell():
    """What is displayed inside is in its `outputs`, each with its data, metadata and whether it is an update."""
    main = sys.modules["__main__"]
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.kernel = "all that we ask of it is to be there"
    try:
        with capture_output(stdout=False, stderr=False) as shown:
            yield shown
    finally:
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = main
