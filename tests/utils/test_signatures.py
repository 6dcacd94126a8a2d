"""The arguments of a user's function are checked by its signature, where Python knows it."""

import functools

import pytest

from harness.utils.errors import UsageError
from harness.utils.signatures import check_arguments, takes_argument


def check(function, **arguments):
    check_arguments("loss=mine", "loss_args", function, arguments, positional=2)


def test_a_function_without_a_known_signature_is_not_checked():
    check(dict, anything=1)
    assert not takes_argument(dict, "anything")


def test_a_function_that_takes_too_few_arguments_is_shown_with_those_that_it_takes():
    with pytest.raises(UsageError, match=r"loss=mine is a function of \(logits\); it must take 2 arguments$"):
        check(lambda logits: logits)
    check(lambda *everything: everything)


def test_only_a_parameter_that_can_be_given_by_name_is_taken():
    def function(first, /, second, *rest, third=0, **others):
        """Take arguments of each kind."""

    assert [name for name in ("first", "second", "rest", "third", "others") if takes_argument(function, name)] == [
        "second",
        "third",
    ]
    check(function, fourth=1)  # any name, by **others
    check(functools.partial(function, 1), third=2)
