"""Source files of the project and of a user's own methods: found by their imports, and hashed.

A file is named by its module: `lora_retriever/methods/parts/top_k.py`, or `mine.py` for a user's module `mine`. Nothing
is imported here, so finding files costs no time of torch or transformers.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from lora_retriever.own_objects import source_file

OWN_PACKAGES = ("lora_retriever", "peft_composition")
"""The project's own packages."""
SEAMS = ("lora_retriever/methods/__init__.py", "lora_retriever/methods/base.py", "lora_retriever/methods/context.py")
"""Files that every method uses. The imports of these files are not followed, because they lead to all files."""
METHOD_FILES = "lora_retriever/methods/"
RETRIEVAL = "lora_retriever/retrieval/"
GENERATION = ("lora_retriever/data/", "lora_retriever/generation/", "peft_composition/")
"""The code that makes an answer of a prompt and a composition, and that learns from examples.

A name that ends in `/` is a folder.
"""


def hashes_of(names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files and folders of the project, by the files' names. Only Python files count."""
    return dict(sorted((name, hash_of(path)) for name, path in _project_files(names)))


def part_hashes(parts: Iterable[Any], own: Iterable[str] = ()) -> dict[str, str]:
    """The SHA-256 of the source files of routers, composers, gates or functions, and of the files they import.

    In the project, imports are followed within `methods`. If one of these files uses retrieval, all files of retrieval
    count. In a user's own code, imports are followed within the folder of the module.

    Args:
        own: a user's own objects that were loaded, by `module:object`. Their modules count like the parts' modules.
    """
    found: dict[str, Path] = {}
    waiting = [source for part in parts for source in _sources_of(part)]
    for location in own:
        path = source_file(location)
        if path is not None and not _is_installed(path):
            waiting.append((location.partition(":")[0], path))
    while waiting:
        module, path = waiting.pop()
        name = file_name(module, path)
        if name in found:
            continue
        found[name] = path
        if name not in SEAMS and (name.startswith(METHOD_FILES) or not _is_own(module)):
            waiting += _imported(module, path)
    uses_retrieval = any(name.startswith(RETRIEVAL) for name in found)
    hashes = {
        name: hash_of(path)
        for name, path in found.items()
        if name not in SEAMS and (name.startswith(METHOD_FILES) or not _is_own(name.replace("/", ".")))
    }
    return dict(sorted((hashes | (hashes_of([RETRIEVAL]) if uses_retrieval else {})).items()))


def learning_digest(learn: Callable[..., Any]) -> str:
    """The SHA-256 of all code that decides what a function `learn` of a method learns."""
    hashes = hashes_of(GENERATION) | part_hashes([learn])
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items())).encode()).hexdigest()


def file_name(module: str, path: Path) -> str:
    """The name of a module's file: the module's name with slashes."""
    return str(PurePosixPath(*module.split("."))) + ("/__init__.py" if path.name == "__init__.py" else ".py")


def hash_of(path: Path) -> str:
    """The SHA-256 of a source file, in hexadecimal. A file that cannot be read any more has no hash."""
    try:
        status = path.stat()
        return _hash(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return ""


@cache
def _hash(path: Path, time: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _project_files(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        package, _, rest = name.partition("/")
        folder = _folder_of(package)
        if folder is None:
            continue
        files = sorted((folder / rest).rglob("*.py")) if name.endswith("/") else [folder / rest]
        for path in files:
            yield f"{package}/{path.relative_to(folder).as_posix()}", path


@cache
def _folder_of(package: str) -> Path | None:
    """The folder of one of the project's packages, which need not be imported."""
    if package == "lora_retriever":
        return Path(__file__).resolve().parents[1]
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in OWN_PACKAGES


def _sources_of(part: Any) -> list[tuple[str, Path]]:
    """The modules of a part's class and of the classes from which the part inherits. A part without a file has none."""
    while isinstance(part, partial):
        part = part.func
    part = getattr(part, "__func__", part)  # a bound method
    kinds: Sequence[Any] = [part] if inspect.isfunction(part) else type(part).__mro__
    sources = []
    for kind in kinds:
        try:
            path = inspect.getsourcefile(kind)
        except (TypeError, OSError):  # a built-in class, or a class that was typed into a shell
            continue
        if path is not None and (_is_own(kind.__module__) or not _is_installed(Path(path))):
            sources.append((kind.__module__, Path(path)))
    return sources


def _is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package. Their versions are recorded instead."""
    folders = [Path(sys.base_prefix) / "lib", *(Path(entry) for entry in sys.path if entry.endswith("-packages"))]
    return any(path.is_relative_to(folder) for folder in folders)


def _imported(module: str, path: Path) -> list[tuple[str, Path]]:
    """The modules that a file imports, with their files: of the project, or of the folder where the file lies."""
    stamp = path.stat() if path.exists() else None
    if stamp is None:
        return []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = _imports(path, package, stamp.st_mtime_ns, stamp.st_size)
    depth = module.count(".") + (path.name == "__init__.py")
    top = path.parents[min(depth, len(path.parents) - 1)]  # the folder from which the module's name counts
    found = []
    for name in names:
        root, _, rest = name.partition(".")
        folder = _folder_of(root) if root in OWN_PACKAGES else top / root
        if folder is None:
            continue
        base = folder.joinpath(*rest.split(".")) if rest else folder
        for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if file.is_file():
                found.append((name, file))
                break
    return found


@cache
def _imports(path: Path, package: str, time: int, size: int) -> frozenset[str]:
    """The names that may be modules in the import statements of a file, at any place of the file. `time` and `size`
    change when the file changes, so that a remembered result is not used for a changed file. Imports for type checks
    alone do not count."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        waiting += ast.iter_child_nodes(node)
    return frozenset(found)


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names of the files that differ between two sets of hashes, in order: changed, added or removed."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
