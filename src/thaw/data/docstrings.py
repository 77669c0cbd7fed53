"""English sentences with a label, from what is installed anyway: the docstrings of Python packages."""

import ast
import gc
import hashlib
import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from datasets import Dataset
from pydantic import Field

from thaw.data.datamodule import Share
from thaw.data.text import Text
from thaw.errors import UserError

PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "torch")
# So many of one module at most: enough modules for a split that keeps each of them on one side.
PER_MODULE = 12
WORDS = range(5, 41)
LARGEST = 60_000  # bytes; a few files beyond take as long to parse as all the others

# Tests repeat their subjects, and what is vendored is another package's prose.
LEFT_OUT = re.compile(r"_?(test.*|externals?|vendor(ed)?|third_party)|_lib|.*_test|conftest|[.].*")
MARKED = re.compile(r"(?::[\w+:-]+:)?(`{1,2})[~!.]*([^`<]+?)(?:\s*<[^`>]*>)?\1_{0,2}")  # marks of reST
# The end of a sentence, but for those abbreviations that stand before a capital letter.
ENDS = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<!Eq\.)(?<!et al\.)\s+(?=[A-Z])")
PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;:.'’\"()/%-]*[A-Za-z0-9)\"'][.!?]")
WORD = re.compile(r"[(\"']?[A-Za-z][A-Za-z'’./-]*[,;:!?)\"']*")


class Docstrings(Text):
    """Sentences from the docstrings of installed packages, to be told apart by their package.

    Args:
        packages: those to read; what is not installed is left out.
        per_package: most sentences of each.
        test_size: share of each package's sentences; val and test hold whole modules, so that what one author wrote in
            one go stands on one side.
        text: see Text.

    Raises:
        UserError: fewer than two of the packages are installed.
    """

    def __init__(
        self,
        packages: Sequence[str] = PACKAGES,
        per_package: Annotated[int, Field(ge=10)] = 600,
        test_size: Share = 0.2,
        **text: Any,
    ) -> None:
        self.packages, self.per_package = packages, per_package
        self.shares = {"test": test_size, "val": text.get("val_size", 0.1)}
        self._by = np.random.default_rng(text.get("seed", 0))
        super().__init__(test_size=test_size, **text)

    def tables(self) -> dict[str, Dataset]:
        found = sentences(self.packages, self.per_package)
        splits: dict[str, list[Sentence]] = {"train": [], "val": [], "test": []}
        for package in dict.fromkeys(sentence.package for sentence in found):
            own = [sentence for sentence in found if sentence.package == package]
            modules = self._by.permutation(sorted({sentence.module for sentence in own}))
            left = {split: share * len(own) for split, share in self.shares.items()}
            for module in modules.tolist():
                together = [sentence for sentence in own if sentence.module == module]
                split = next((split for split, room in left.items() if 2 * room >= len(together)), "train")
                left[split] = left.get(split, 0) - len(together)
                splits[split] += together
        return {
            split: Dataset.from_dict({"text": [s.text for s in held], "label": [s.package for s in held]})
            for split, held in splits.items()
        }


class Sentence(NamedTuple):
    """One sentence, and where it stands; a split by `module` keeps what one author wrote in one go together."""

    text: str
    package: str
    module: str


def sentences(packages: Sequence[str] = PACKAGES, per_package: int = 600) -> list[Sentence]:
    """Up to `per_package` sentences of each installed package, spread over its modules, the same ones every time.

    The files are parsed, never imported: none of their code runs. All sentences differ, also when lower-cased, and
    none stands in two packages.

    Raises:
        UserError: fewer than two of the packages are installed.
    """
    roots = {package: root for package in packages if (root := _root(package))}
    if len(roots) < 2:
        raise UserError(
            f"data.packages must name at least two installed packages; of {', '.join(packages) or 'none'} there are "
            f"{len(roots)}. Write others, or install them: pip install {' '.join(PACKAGES[:2])}."
        )
    collecting = gc.isenabled()
    gc.disable()  # syntax trees have no cycles, and looking for some takes as long as all the rest
    try:
        found = [sentence for package, root in roots.items() for sentence in _of_package(package, root, per_package)]
    finally:
        if collecting:
            gc.enable()
    # Within a package they differ already.
    occurs = Counter(sentence.text.lower() for sentence in found)
    return [sentence for sentence in found if occurs[sentence.text.lower()] == 1]


def prose(docstring: str) -> list[str]:
    """The sentences of a docstring's first paragraph that are plain prose, with reST's marks taken off."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    if re.search(r">>>|::|^\s*(\.\.|[-+*|]|\d+[.)])\s|^\s*([-=~])\2{2}", paragraph, re.MULTILINE):
        return []  # doctest, directive, list or table
    plain = MARKED.sub(r"\2", " ".join(paragraph.split()))
    return [text for text in ENDS.split(plain) if _is_prose(text)]


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) not in WORDS or not PROSE.fullmatch(text):
        return False
    return sum(WORD.fullmatch(word) is not None for word in words) >= 0.9 * len(words)


def _root(package: str) -> Path | None:
    # The spec of a submodule would import its parent.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) if folders else None


def _of_package(package: str, root: Path, wanted: int) -> Iterator[Sentence]:
    seen: set[str] = set()
    for path in _files(root):
        module = ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        taken = 0
        for text in _of_file(path):
            if len(seen) == wanted or taken == PER_MODULE:
                break
            if text.lower() not in seen:
                seen.add(text.lower())
                taken += 1
                yield Sentence(text, package, module)
        if len(seen) == wanted:
            return


def _files(root: Path) -> list[Path]:
    """The package's files in an order that looks random, so that those taken are spread over all of it."""
    found: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not LEFT_OUT.fullmatch(name)]
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        found += [path for path in paths if not LEFT_OUT.fullmatch(path.stem)]
    return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _of_file(path: Path) -> Iterator[str]:
    source = path.read_bytes()
    if len(source) > LARGEST or source.count(b'"""') < 2:  # parsing is what takes the time
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their invalid escapes are not our concern
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or another Python's syntax
        return
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        yield from prose(ast.get_docstring(node) or "")
        if isinstance(node, ast.Module | ast.ClassDef):  # what stands within functions is not for readers
            inner = [
                child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            nodes += reversed(inner)
