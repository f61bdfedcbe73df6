"""Runs notebooks when the site is built, and turns them into Markdown pages like all others.

Other converters bring styles and scripts of their own, some from other servers. A run notebook is kept in
`site/.notebooks/` and run again only when its file has changed. `RUN_NOTEBOOKS=false` in the environment
builds their pages without outputs, in no time.
"""

import base64
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


_LOG = logging.getLogger("mkdocs.hooks.notebooks")
_LIMIT = 1800  # seconds for a cell; a whole notebook takes minutes


class NotebookPage(File):
    """A page whose text comes from a notebook. Links and the navigation name the notebook's file."""

    def is_documentation_page(self) -> bool:
        """mkdocs would take it for something to be copied, by its suffix."""
        return True


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """mkdocs calls this with all files, before it reads any."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(file.abs_src_path or "")
        if config.extra["run_notebooks"]:
            path = _run(path, Path(config.config_file_path).parent / "site" / ".notebooks")
        folder = file.src_uri.rpartition("/")[0]
        text, pictures = _markdown(json.loads(path.read_text("utf-8")), path.stem)
        files.remove(file)
        files.append(NotebookPage.generated(config, file.src_uri, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{folder}/{name}", content=content))
    return files


def _run(path: Path, folder: Path) -> Path:
    """Where the notebook with its outputs is: from the last run if the file is the same, or a new one."""
    version = hashlib.sha256(path.read_bytes()).hexdigest()
    done = folder / path.name
    if done.exists() and json.loads(done.read_text("utf-8"))["metadata"]["version"] == version:
        return done

    # Only here, so that a build without outputs needs no Jupyter.
    import nbformat
    from nbclient import NotebookClient

    _LOG.info("Running %s; this takes some minutes", path.name)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=_LIMIT, kernel_name="python3").execute()
    notebook.metadata["version"] = version
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, done)
    return done


def _markdown(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """The page's text, and its pictures by file name. Code tagged `solution` is folded away."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        code = f"```python\n{source}\n```"
        if "solution" in cell["metadata"].get("tags", ()):
            code = f'<details markdown="1">\n<summary>Solution</summary>\n\n{code}\n\n</details>'
        parts.append(code)
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{cell['metadata']['alt']}]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts), pictures
