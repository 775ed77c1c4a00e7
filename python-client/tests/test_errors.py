"""The tree of errors, and that each leaf is also what callers without forebay would catch."""

import inspect
from pathlib import Path

import pytest

import forebay
from forebay import _errors

CLASSES = [thing for _, thing in inspect.getmembers(_errors, inspect.isclass) if thing.__module__ == "forebay._errors"]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_in_the_tree_exported_and_explained(error):
    assert issubclass(error, forebay.ForebayError)
    assert getattr(forebay, error.__name__) is error
    assert error.__name__ in forebay.__all__
    assert error.__doc__.endswith(".")
    assert str(error("what happened")) == "what happened"


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (forebay.ReceiveTimeout, TimeoutError),
        (forebay.RingFull, TimeoutError),
        (forebay.RingNotFound, TimeoutError),
        (forebay.RingNotFound, ConnectionError),
        (forebay.WaitTimeout, TimeoutError),
        (forebay.QuotaExceeded, TimeoutError),
        (forebay.PeerDied, ConnectionError),
        (forebay.RingClosed, ConnectionError),
        (forebay.SchemaMismatch, ValueError),
        (forebay.SchemaMismatch, ConnectionError),
        (forebay.MessageTooLarge, ValueError),
        (forebay.FieldsMismatch, ValueError),
        (forebay.LoanEnded, ValueError),
        (forebay.HandleClosed, ValueError),
        (forebay.NoSuchField, KeyError),
        (forebay.InsufficientMemory, MemoryError),
        (forebay.SystemCallError, OSError),
    ],
)
def test_leaves_are_also_what_they_are_without_us(error, also):
    assert issubclass(error, also)


def test_every_class_is_raised_somewhere():
    source = (Path(__file__).parents[1] / "src" / "errors.rs").read_text()
    roots = {"CreateError", "AttachError", "ReceiveError", "LoanError", "ForebayError"}
    assert [
        error.__name__ for error in CLASSES if f'"{error.__name__}"' not in source and error.__name__ not in roots
    ] == []


def test_every_class_that_is_raised_exists():
    import re

    source = (Path(__file__).parents[1] / "src" / "errors.rs").read_text()
    named = set(re.findall(r'"([A-Z][A-Za-z]+)"', source))
    assert named
    assert named - {error.__name__ for error in CLASSES} == set()
