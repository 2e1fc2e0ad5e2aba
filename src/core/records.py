"""Named tuples, and the mark for type checkers, without typing: its import takes a client longer than all of its own."""

from __future__ import annotations

from _operator import itemgetter

TYPE_CHECKING = False  # type checkers take it for True, as they take typing's

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class NamedTuple(tuple):
        """As typing.NamedTuple: annotated fields with defaults, given by position or name."""

        def __init_subclass__(cls):
            cls._fields = tuple(cls.__annotations__)
            cls._field_defaults = {name: cls.__dict__[name] for name in cls._fields if name in cls.__dict__}
            for place, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(place)))

        def __new__(cls, *values, **named):
            rest = cls._fields[len(values) :]
            found = {**cls._field_defaults, **named}
            if len(values) > len(cls._fields) or not set(named) <= set(rest) or not set(rest) <= set(found):
                raise TypeError(f"{cls.__name__} has the fields {', '.join(cls._fields)}")
            return tuple.__new__(cls, (*values, *(found[name] for name in rest)))

        def __repr__(self):
            pairs = (f"{name}={value!r}" for name, value in zip(self._fields, self))
            return f"{type(self).__name__}({', '.join(pairs)})"

        def _replace(self, **named):
            return type(self)(**{**dict(zip(self._fields, self)), **named})

        def __getnewargs__(self):
            return tuple(self)
