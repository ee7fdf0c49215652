"""Run the notebooks in fresh kernels, and write them back with their outputs and nothing else.

    python notebooks/execute.py 1_compare_solvers.ipynb          those named, or all

A notebook is its own source: edit it where you like, then run this, so that what is committed came out of one run from
top to bottom. Times, paths and the editor's settings do not stay in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
LIMIT = 300  # seconds for one cell


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("*.ipynb"))


def executed(path: Path) -> NotebookNode:
    """The notebook at `path` as a run in a fresh kernel, in an empty folder, leaves it.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails; the message has its source and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # whatever draws elsewhere: pictures are outputs
            "OMP_NUM_THREADS": "1",  # sums come out the same each time
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": folder,  # nobody's own settings
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of bars as widgets: there are no bars here
        }
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources=where, record_timing=False)
        client.execute(env=env)
    return cleaned(notebook)


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """`notebook` with its sources, outputs and numbering, and no more."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """`outputs` with what was printed in one go as one: where a kernel cuts it is chance."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream" and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main() -> None:
    """Execute those that the command line names, or all, in place."""
    for path in [HERE / Path(name).name for name in sys.argv[1:]] or notebooks():
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
