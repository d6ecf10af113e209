"""Write the pages of the API reference: one for the names at the top of egokit, and one for each room."""
import ast
import importlib
from pathlib import Path

import egokit

ROOT = Path(egokit.__file__).parents[1]
ROOMS = ("tasks", "model", "viz", "search", "notebook", "data", "train", "prep", "jobs", "runs", "config", "toy")


def write_pages(folder: Path) -> list[str]:
    """Write all pages as reStructuredText; return their names for the table of contents."""
    folder.mkdir(parents=True)
    (folder / "egokit.rst").write_text(top_page())
    for room in ROOMS:
        (folder / f"{room}.rst").write_text(room_page(room))
    return [f"api/{name}" for name in ("egokit", *ROOMS)]


def heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def top_page() -> str:
    """Return the page of what `import egokit` gives."""
    lines = [heading("egokit", "="), ".. automodule:: egokit\n   :no-index:\n\n", heading("Names", "-")]
    for name in egokit._PUBLIC:
        value = getattr(egokit, name)
        home = f"{value.__module__}.{value.__qualname__}"
        # a class has one place, in its room: its name would be ambiguous
        lines.append(f"``egokit.{name}``\n   {value.__doc__.splitlines()[0]} :py:class:`{home}`\n\n"
                     if isinstance(value, type) else
                     f"{directive(f'egokit.{name}', value)}   Its place: :py:func:`{home}`\n\n")
    lines += [heading("Modules", "-"), "Short names of modules that notebooks use.\n\n"]
    lines += [f"``egokit.{name}``\n   :py:mod:`egokit.{module}`\n\n" for name, module in egokit._MODULES.items()]
    return "".join(lines)


def room_page(room: str) -> str:
    """Return the page of a room: its door, then each of its modules with its public names."""
    path = ROOT / "egokit" / room
    modules = sorted(path.rglob("*.py"), key=lambda file: (file.name != "__init__.py" or file.parent != path,
                                                           str(file)))
    return heading(f"egokit.{room}", "=") + "".join(map(module_section, modules))


def module_section(path: Path) -> str:
    """Return a module's section: its docstring and its public names."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    is_door = path.name == "__init__.py" and path.parent.parent.name == "egokit"
    text = "" if is_door else heading(name.removeprefix("egokit."), "-")
    text += f".. automodule:: {name}\n\n"
    handed_on = [member for member in getattr(module, "__all__", []) if member not in defined(path)]
    if handed_on:
        links = []
        for member in handed_on:
            value = getattr(module, member)
            home = getattr(value, "__module__", "") or ""
            target = f"{home}.{value.__qualname__}" if home.startswith("egokit.") and hasattr(value, "__qualname__") \
                else ""
            links.append(f":py:obj:`{member} <{target}>`" if target else f"``{member}``")
        text += f"From here: {', '.join(links)}.\n\n"
    return text + "".join(directive(f"{name}.{member}", getattr(module, member)) for member in defined(path))


def defined(path: Path) -> list[str]:
    """Return the public functions and classes that a file defines, in its order."""
    return [node.name for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]


def directive(name: str, value) -> str:
    """Return the directive that documents a function or class."""
    if not isinstance(value, type):
        return f".. autofunction:: {name}\n\n"
    kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
    return f".. {kind}:: {name}\n   :members:\n   :show-inheritance:\n\n"
