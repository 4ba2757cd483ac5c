"""DESIGN's layout: the links from `onebase/` to the root folders hold in a clone, an sdist and a wheel."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("grpo", "kernels", "pretrain", "recipes", "rollout", "sft", "verifiers")


def sources() -> list[Path]:
    """Python files of the product, each once."""
    return [p for top in ("onebase", *LINKED) for p in (ROOT / top).rglob("*.py") if not under_link(p)]


def under_link(path: Path) -> bool:
    return any(parent.is_symlink() for parent in [path, *path.parents])


def test_every_link_resolves_to_its_root_folder() -> None:
    links = {p.name: p for p in (ROOT / "onebase").iterdir() if p.is_symlink()}
    assert set(links) >= set(LINKED)
    for name, link in links.items():
        assert os.readlink(link) == f"../{name}", link
        assert link.resolve() == ROOT / name and link.is_dir(), link
        assert not (link / "__init__.py").exists(), f"{link}: would shadow other packages named {name}"


def test_no_file_is_named_like_the_standard_library() -> None:
    clash = [str(p.relative_to(ROOT)) for p in sources() if p.stem in sys.stdlib_module_names - {"__main__"}]
    assert clash == []


@pytest.mark.parametrize("name", LINKED)
def test_root_folder_shadows_nothing(name: str) -> None:
    """With the root first on the path, `import kernels` finds no file of ours."""
    spec = importlib.machinery.PathFinder.find_spec(name, [str(ROOT), sysconfig.get_paths()["purelib"]])
    assert spec is None or spec.origin is None or spec.origin.startswith(sysconfig.get_paths()["purelib"])


def test_the_same_module_has_one_name() -> None:
    """Nothing imports `grpo.loss` for `onebase.grpo.loss`: the module would exist twice."""
    import ast

    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                assert node.level == 0, f"{path}: relative import in a folder with two parents"
            wrong += [f"{path.name}: {n}" for n in names if n.partition(".")[0] in LINKED]
    assert wrong == []


def copy_of_tree(target: Path) -> Path:
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    return Path(shutil.copytree(ROOT, target / "tree", symlinks=True, ignore=unwanted))


def build(tree: Path, hook: str, out: Path) -> Path:
    """One PEP 517 hook of setuptools, in the tree."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.strip().splitlines()[-1]


def members(wheel: Path) -> set[str]:
    return {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}


@pytest.mark.slow
def test_wheel_and_sdist_hold_everything(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", "77", reason="the build backend is setuptools 77 or newer")
    assert setuptools
    tree = copy_of_tree(tmp_path)
    wheel = build(tree, "build_wheel", tmp_path / "wheels")
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "onebase").rglob("*.py") if not under_link(p)}
    for name in LINKED:
        files = [p for p in (ROOT / name).rglob("*") if p.suffix in (".py", ".yaml", ".txt", ".md")]
        wanted |= {f"onebase/{p.relative_to(ROOT)}" for p in files}
    assert members(wheel) >= wanted | {"onebase/py.typed"}, sorted(wanted - members(wheel))
    assert {n.partition("/")[0] for n in members(wheel)} == {"onebase"}

    sdist = build(tree, "build_sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build(unpacked, "build_wheel", tmp_path / "again")
    assert members(again) == members(wheel)

    # Installed, and run where no clone is near.
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import onebase.verifiers.registry as r, onebase.recipe_loader as l; from onebase.cli import main;"
        "assert r.__file__.startswith(__import__('sys').argv[1]), r.__file__;"
        "assert r.load('format_think'); assert l.load('laptop'); main(['--help'])"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: onebase VERB" in done.stdout
