"""Who may import whom: the lab is read without the engine, the engine works without the views."""

import ast
from pathlib import Path

import pytest

import dip_utils

HOUSE = Path(dip_utils.__file__).parent
#: What everyone may import of the engine, and who may import more.
OPEN = {"checks", "machine"}
MORE = {"images.py": {"decoding"}, "fitting.py": {path.stem for path in (HOUSE / "engine").glob("*.py")}}


def imported(path, house):
    """The modules that a file imports from the house, as (room, module): ("engine", "guard"), ("", "network")."""
    package = path.relative_to(house.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*package[: len(package) - node.level + 1]] if node.level else []
            origin = start + (node.module.split(".") if node.module else [])
            names = [[*origin, alias.name] for alias in node.names]
        for name in names:
            if name[0] == house.name:
                room = name[1] if len(name) > 1 and (house / name[1]).is_dir() else ""
                module = name[2 if room else 1 : 3 if room else 2]
                yield room, module[0] if module else ""


def faults(house):
    """Imports against the direction, each as "file: module"."""
    for path in sorted(house.rglob("*.py")):
        where = path.relative_to(house)
        room = where.parts[0] if len(where.parts) > 1 else ""
        if str(where) == "__init__.py":
            continue
        for other, module in imported(path, house):
            closed = other == "engine" != room and module not in OPEN | MORE.get(str(where), set())
            upwards = (other == "views" != room) or (room == "engine" and (other, module) == ("", "fitting"))
            # By way of the public names anything can be had.
            around = not other and not (house / f"{module}.py").is_file()
            if closed or upwards or around:
                yield f"{where}: {'.'.join(filter(None, (other, module)))}"


def test_imports_go_one_way():
    assert list(faults(HOUSE)) == []


PLANTED = {
    "network.py": "from .engine.kernels import accelerated",
    "metrics.py": "from .engine import checks, guard",
    "images.py": "from .engine.rehearsal import rehearse",
    "fitting.py": "from .views import live",
    "stopping.py": "def late():\n    from .engine.step import Problem",
    "resampling.py": "import dip_utils.engine.memory",
    "corruption.py": "from dip_utils.engine import saving as harmless",
    "baselines.py": "from . import fit",
    "engine/step.py": "from ..views import figures",
    "engine/guard.py": "from ..fitting import fit",
    "engine/graph.py": "from .. import fit",
    "engine/watch.py": "import dip_utils.views.live",
    "views/live.py": "from ..engine.watch import Watcher",
    "views/slider.py": "from ..engine import step",
}
ALLOWED = {
    "network.py": "from .engine.checks import check_integer\nfrom .engine.machine import seeded\nimport torch",
    "images.py": "from .engine.decoding import decode",
    "fitting.py": "from .engine import memory\nfrom .engine.guard import Guard\nfrom .network import SkipNetwork",
    "engine/step.py": "from ..stopping import HoldOut\nfrom .checks import check_image\nfrom . import memory",
    "views/live.py": "from ..engine import checks\nfrom ..fitting import fit\nfrom .figures import show",
    "__init__.py": "from .engine.machine import choose_device\nfrom .views.live import LivePlot",
}


def build_house(root, files):
    """A copy of the house's files, empty but for these."""
    for path in HOUSE.rglob("*.py"):
        where = path.relative_to(HOUSE)
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        (root / where).write_text(files.get(where.as_posix(), ""))
    return root


@pytest.mark.parametrize("where", PLANTED)
def test_an_import_against_the_direction_is_found(where, tmp_path):
    found = list(faults(build_house(tmp_path / "dip_utils", ALLOWED | {where: PLANTED[where]})))
    assert len(found) == 1 and found[0].startswith(f"{where}: "), found


def test_an_import_along_the_direction_is_none(tmp_path):
    assert list(faults(build_house(tmp_path / "dip_utils", ALLOWED))) == []


def test_every_room_and_file_says_what_lives_there():
    for path in HOUSE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
