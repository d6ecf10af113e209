"""Read pickles of others: only plain data is built, and nothing is imported, called or executed.

Python's own unpickler imports the modules that a pickle names, calls what it finds there, and follows a file's sizes
and nesting in C, where a small file can end the process. Here pickletools only tells the instructions, and each is
carried out by a method that builds numbers, texts and containers, and nothing else. What a name stands for is decided
by a subclass: that of `tensor_file` knows tensors, that of `relevancy` one array.

Bounds, far above what published files have: STEPS instructions, NESTING levels, CONTAINERS containers, EXPANDED values,
where a shared container counts at each place that shows it, and no text or array longer than the rest of the file. What
is beside the weights and can't be kept is left out: a key that is a foreign object, or a container in itself.
"""
import pickletools
from collections.abc import Callable

from egokit.data.plain_data import SIMPLE, Containers, Dropped, Maker, Refused, kind_of, make_dict, make_set

STEPS = 5_000_000
GIVEN = 1_000_000  # values or bytes that calls may be given, and as many again as the file has bytes


class _Bounded:
    """A file for pickletools, of which no more is read than there is."""

    def __init__(self, file, end: int):
        self.file, self.end, self.readline = file, end, file.readline

    def read(self, size: int) -> bytes:
        if size > 1024 and size > self.end - self.file.tell():  # before memory is taken for it
            raise Refused("it ends too early")
        return self.file.read(size)


MARK = object()


class SafeUnpickler:
    """An unpickler of plain data.

    Args:
        file: a binary file at the beginning of a pickle; after `load` it is at the pickle's end.
        end: the size of the file.
    """

    def __init__(self, file, end: int):
        self.file = _Bounded(file, end)
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.names: dict[str, object] = {}
        self.containers = Containers()
        self.given, self.may_be_given = 0, end + GIVEN

    # What a subclass decides

    def find(self, name: str):
        """Return what stands for a name such as "torch.Size": a `Maker`, a `Dropped` or plain data.

        Raises:
            Refused: files of this kind have no use for the name.
        """
        raise Refused(f"it names {name}, and only plain data is expected")

    def refer(self, saved):
        """Return what stands for a reference to something outside of the pickle."""
        raise Refused("it refers to something outside of itself")

    def build(self, target, state) -> None:
        """Give an object its state. Attributes of dicts are left out, as of an OrderedDict."""
        if type(target) is not dict:
            raise Refused(f"it changes {kind_of(target)}")

    def load(self):
        """Return the content of the pickle.

        Raises:
            Refused: the pickle is damaged, out of bounds, or holds something else than plain data.
        """
        try:
            for number, (instruction, argument, _) in enumerate(pickletools.genops(self.file)):
                if number > STEPS:
                    raise Refused(f"it has more than {STEPS:,} instructions")
                if instruction.name in VALUES:
                    self.stack.append(argument)
                else:
                    INSTRUCTIONS.get(instruction.name, _refuse)(self, argument)
            return self.pop()
        except Refused:
            raise
        except Exception as error:  # whatever damaged instructions lead to
            raise Refused(f"its instructions are damaged ({type(error).__name__}: {str(error)[:80]})") from error

    # The stack

    def pop(self):
        value = self.stack.pop()
        if value is MARK:
            raise Refused("its instructions are damaged (a mark in place of a value)")
        return value

    def to_mark(self) -> list:
        """Take the values above the newest mark, and the mark, from the stack."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            if at == 0:
                raise Refused("its instructions are damaged (no mark)")
            at -= 1
        values = self.stack[at + 1:]
        del self.stack[at:]
        return values

    def change(self, kind: type, method: Callable, values: list) -> None:
        """Add values to the newest container.

        Args:
            kind: what the container must be.
            method: adds the values to the container.
            values: all that is added.
        """
        target = self.stack[-1]
        if isinstance(target, Dropped):
            return
        if type(target) is not kind:
            raise Refused(f"it adds to {kind_of(target)} as to a {kind.__name__}")
        values = self.containers.without_cycles(target, values)
        self.containers.put(target, values)
        method(target, values)

    def name(self, module: str, name: str):
        """Return what stands for module.name."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self.names:
            self.names[full] = self.find(full)
        return self.names[full]

    def call(self, function, arguments):
        """Return what a `Maker` makes of its arguments; a `Dropped` stays one."""
        if isinstance(function, Dropped):
            return function
        if not isinstance(function, Maker) or type(arguments) is not tuple:
            raise Refused(f"it calls {kind_of(function)}")
        self.given += sum(len(argument) for argument in arguments if hasattr(argument, "__len__"))
        if self.given > self.may_be_given:  # the same ones again and again, of which each call makes something new
            raise Refused("its calls are given more than the file holds")
        made = function.make(*arguments)
        if type(made) in SIMPLE:
            return made
        return made if made in self.containers else self.containers.put(made, arguments)

    def remember(self, place: int) -> None:
        """Keep the newest value under a number."""
        if place > STEPS or len(self.memo) > STEPS // 4:
            raise Refused(f"it numbers more than {STEPS // 4:,} values")
        self.memo[place] = self.stack[-1]


# Instructions: functions of the machine and of the instruction's own argument

VALUES = frozenset(["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
                    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
                    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"])  # the argument is the value


def _refuse(machine: SafeUnpickler, argument) -> None:
    raise Refused("it has an instruction that is none for plain data")


def _pushes(make: Callable) -> Callable:
    """Return the instruction that puts what `make` returns on the stack."""
    return lambda machine, argument: machine.stack.append(make(machine, argument))


def _tuple(count: int) -> Callable:
    return _pushes(lambda machine, _: _put_tuple(machine, [machine.pop() for _ in range(count)][::-1]))


def _put_tuple(machine: SafeUnpickler, values: list) -> tuple:
    return machine.containers.put(tuple(values), values)


def _pairs(items: list) -> zip:
    return zip(items[::2], items[1::2], strict=True)


def _put_dict(machine: SafeUnpickler, items: list) -> dict:
    return machine.containers.put(make_dict(_pairs(items)), items)


def _put_frozen(machine: SafeUnpickler, values: list) -> frozenset:
    return machine.containers.put(frozenset(make_set(values)), values)


def _append(machine: SafeUnpickler, values: list) -> None:
    machine.change(list, list.extend, values)


def _set_items(machine: SafeUnpickler, items: list) -> None:
    machine.change(dict, lambda target, items: target.update(make_dict(_pairs(items))), items)


def _add(machine: SafeUnpickler, values: list) -> None:
    machine.change(set, lambda target, values: target.update(make_set(values)), values)


def _call(machine: SafeUnpickler, _) -> None:
    arguments = machine.pop()
    machine.stack.append(machine.call(machine.pop(), arguments))


def _call_with_keywords(machine: SafeUnpickler, _) -> None:
    if machine.pop():
        raise Refused("it calls something with keywords")
    _call(machine, _)


def _call_marked(machine: SafeUnpickler, _):
    function, *values = machine.to_mark()
    return machine.call(function, _put_tuple(machine, values))


def _call_named(machine: SafeUnpickler, argument: str):
    return machine.call(machine.name(*argument.split(" ", 1)), _put_tuple(machine, machine.to_mark()))


def _stack_name(machine: SafeUnpickler, _):
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise Refused("it has a name that is no text")
    return machine.name(module, name)


def _build(machine: SafeUnpickler, _) -> None:
    state, target = machine.pop(), machine.stack[-1]
    if not isinstance(target, Dropped):
        machine.build(target, state)


_get = _pushes(lambda machine, place: machine.memo[place])

# by pickletools' names; left out are the extension registry, and buffers outside of the pickle
INSTRUCTIONS: dict[str, Callable] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": _pushes(lambda machine, _: None), "NEWTRUE": _pushes(lambda machine, _: True),
    "NEWFALSE": _pushes(lambda machine, _: False), "MARK": _pushes(lambda machine, _: MARK),
    "EMPTY_TUPLE": _tuple(0), "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "TUPLE": _pushes(lambda machine, _: _put_tuple(machine, machine.to_mark())),
    "EMPTY_LIST": _pushes(lambda machine, _: machine.containers.put([], ())),
    "EMPTY_DICT": _pushes(lambda machine, _: machine.containers.put({}, ())),
    "EMPTY_SET": _pushes(lambda machine, _: machine.containers.put(set(), ())),
    "LIST": _pushes(lambda machine, _: machine.containers.put(values := machine.to_mark(), values)),
    "DICT": _pushes(lambda machine, _: _put_dict(machine, machine.to_mark())),
    "FROZENSET": _pushes(lambda machine, _: _put_frozen(machine, machine.to_mark())),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.to_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, [machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.to_mark()),
    "ADDITEMS": lambda machine, _: _add(machine, machine.to_mark()),
    "POP": lambda machine, _: machine.stack.pop(), "POP_MARK": lambda machine, _: machine.to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), SafeUnpickler.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "GLOBAL": _pushes(lambda machine, argument: machine.name(*argument.split(" ", 1))),
    "STACK_GLOBAL": _pushes(_stack_name), "REDUCE": _call, "NEWOBJ": _call, "NEWOBJ_EX": _call_with_keywords,
    "OBJ": _pushes(_call_marked), "INST": _pushes(_call_named), "BUILD": _build,
    "PERSID": _pushes(lambda machine, argument: machine.refer(argument)),
    "BINPERSID": _pushes(lambda machine, _: machine.refer(machine.pop()))}
