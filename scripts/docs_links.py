"""A hook of mkdocs: links from a page to files of the repository outside `docs/` work in the built site.

On a forge, a page links to `../README.md` or `../lora_retriever/profiles/tiny.yaml` by a relative path. mkdocs knows
only the files of `docs/`. So this hook adds every such file to the site, as the page `source/PATH`, and changes the
links to these pages. A Markdown file becomes a page; the page of any other text file shows the file as code. The hook
leaves a link to a missing file as it is, and mkdocs reports the link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
"""The path in a Markdown link `[text](path#anchor)`; paths with a colon are addresses of other sites."""
SOURCE = "source"
"""The folder of the site that holds pages made from files outside `docs/`."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside `docs/` that a page links to, and every file that an added Markdown file links to."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    added: set[Path] = set()
    while waiting:
        origin = waiting.pop()
        for match in LINK.finditer(origin.read_text(encoding="utf-8")):
            target = (origin.parent / match[0]).resolve()
            if not target.is_file() or docs in target.parents or root not in target.parents or target in added:
                continue
            added.add(target)
            files.append(_page_of(target, root, config))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links to pages of the site: the links of a page that lead out of `docs/`, and all links of an added
    page."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    here = PurePosixPath(page.file.src_uri)
    origin = root.joinpath(*here.parts[1:]) if here.parts[0] == SOURCE else docs.joinpath(here)
    if not origin.is_file():  # the page of a file that is shown as code
        return markdown
    return LINK.sub(_relinked(origin, here, root, docs), markdown)


def _relinked(origin: Path, here: PurePosixPath, root: Path, docs: Path) -> Callable[[re.Match[str]], str]:
    def link(match: re.Match[str]) -> str:
        target = (origin.parent / match[0]).resolve()
        if not target.is_file() or root not in target.parents:
            return match[0]
        return PurePosixPath(os.path.relpath(_uri(target, root, docs), here.parent)).as_posix()

    return link


def _uri(target: Path, root: Path, docs: Path) -> PurePosixPath:
    """The path, within the site's sources, of the page that shows a file of the repository."""
    if docs in target.parents:
        return PurePosixPath(target.relative_to(docs).as_posix())
    name = target.relative_to(root).as_posix()
    return PurePosixPath(SOURCE, name if target.suffix == ".md" else f"{name}.md")


def _page_of(target: Path, root: Path, config: MkDocsConfig) -> File:
    uri = str(_uri(target, root, Path(config.docs_dir)))
    text = target.read_text(encoding="utf-8")
    if target.suffix != ".md":
        language = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".sh": "bash"}.get(target.suffix, "text")
        text = f"# {target.relative_to(root).as_posix()}\n\n````{language}\n{text}\n````\n"
    return File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
