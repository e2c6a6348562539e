import re

import pytest

import w2skd.errors as errors_module
from w2skd.errors import UserError, suggest


def subclasses(kind: type[UserError]) -> list[type[UserError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def drawn_tree() -> dict[str, tuple[str, int]]:
    """Class -> (base, exit code), from the tree in the module's docstring."""
    tree: dict[str, tuple[str, int]] = {}
    above: dict[int, str] = {}
    for line in (errors_module.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ([│ ]*(?:[├└]── )?)(\w+) +(\d+)\s.*", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        above[depth] = match[2]
        tree[match[2]] = (above[depth - 1] if depth else "Exception", int(match[3]))
    return tree


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    ours = [kind for kind in subclasses(UserError) if kind.__module__ == errors_module.__name__]
    assert drawn_tree() == {kind.__name__: (kind.__bases__[0].__name__, kind.exit_code) for kind in ours}


def test_no_error_of_ours_hides_as_success_or_as_the_shells_own() -> None:
    codes = {kind.exit_code for kind in subclasses(UserError)}
    assert codes == {1, 2, 3, 75, 130}


def test_the_message_is_what_the_user_reads() -> None:
    assert str(errors_module.DataError("data/cat.jpg: cannot be read")) == "data/cat.jpg: cannot be read"


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("epoch", ["epochs", "steps"], " (did you mean 'epochs'?)"),
        ("cifar_resnet21", ["cifar_resnet20", "small_cnn_weak"], " (did you mean 'cifar_resnet20'?)"),
        ("zebra", ["epochs", "steps"], ""),
        ("epochs", [], ""),
        ("", ["epochs"], ""),
    ],
)
def test_the_nearest_word_is_suggested(word: str, known: list[str], expected: str) -> None:
    assert suggest(word, known) == expected


def test_known_words_may_come_from_a_generator() -> None:
    assert suggest("epoch", (word for word in ("steps", "epochs"))) == " (did you mean 'epochs'?)"
