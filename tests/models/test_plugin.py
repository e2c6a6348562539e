import hashlib
import sys
from textwrap import dedent

import pytest
import torch
from torch import nn

from w2skd.errors import RecipeError, UsageError
from w2skd.models.catalog import build_classifier
from w2skd.models.plugin import forget_plugins, load_plugin, plugin_fingerprint


@pytest.fixture(autouse=True)
def _no_plugins():
    forget_plugins()
    yield
    forget_plugins()


@pytest.fixture
def write(tmp_path):
    def write(content, name="my_models.py"):
        path = tmp_path / name
        path.write_text(dedent(content), encoding="utf-8")
        return path

    return write


GOOD = """
    from dataclasses import dataclass
    from functools import partial
    from torch import nn
    from torch.nn import Linear

    @dataclass
    class _Settings:
        width: int = 8

    class Tiny(nn.Module):
        def __init__(self, classes, width=_Settings().width):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3)
            self.head = Linear(width, classes)

        def forward(self, images):
            return self.head(self.conv(images).mean(dim=(2, 3)))

    wide = partial(Tiny, width=16)

    def deep(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3), Tiny_body(), nn.Linear(4, classes))

    def Tiny_body():
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def _hidden(classes):
        return None
"""


def test_public_functions_and_classes_are_models(write):
    load_plugin(write(GOOD))
    for name in ("Tiny", "wide", "deep"):
        model = build_classifier(f"plugin:{name}", 7, 16)
        assert isinstance(model, nn.Module)
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_private_and_imported_names_are_not_models(write):
    load_plugin(write(GOOD))
    for name in ("_hidden", "_Settings", "Linear", "partial", "dataclass"):
        with pytest.raises(RecipeError, match=f"has no model '{name}'"):
            build_classifier(f"plugin:{name}", 7)


def test_dunder_all_defines_the_public_names(write):
    load_plugin(
        write(
            """
            from torch.nn import Linear as imported
            __all__ = ["imported"]
            def other(classes): ...
            """
        )
    )
    with pytest.raises(RecipeError, match=r"has no model 'other'; it has imported$"):
        build_classifier("plugin:other", 7)


def test_an_unknown_name_suggests_a_known_one(write):
    path = write(GOOD)
    load_plugin(path)
    with pytest.raises(
        RecipeError, match=r"no model 'wife' \(did you mean 'wide'\?\); it has Tiny, wide, deep"
    ) as caught:
        build_classifier("plugin:wife", 7)
    assert str(path) in str(caught.value)


def test_without_a_plugin_the_error_names_the_option():
    with pytest.raises(RecipeError, match=r"plugin:tiny needs the file that defines 'tiny': add --plugin FILE\.py"):
        build_classifier("plugin:tiny", 7)


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("import torch\n\nwidth = 3 / 0\n", "line 3", "ZeroDivisionError: division by zero"),
        ("def f(classes):\n    return (\n", "line 2", "SyntaxError: '\\(' was never closed"),
        ("import no_such_module_at_all\n", "line 1", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("import sys\nsys.exit('enough')\n", "line 2", "SystemExit: enough"),
        ("raise ValueError('one\\ntwo')\n", "line 1", "ValueError: one$"),
        ("def f():\n    assert False\n\nf()\n", "line 2", "AssertionError$"),
    ],
)
def test_a_failing_file_is_reported_with_its_line(write, content, place, message):
    path = write(content)
    modules = set(sys.modules)
    with pytest.raises(UsageError, match=f"^--plugin .*my_models.py, {place}: {message}"):
        load_plugin(path)
    assert plugin_fingerprint() is None
    assert [name for name in set(sys.modules) - modules if name.startswith("w2skd")] == []


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UsageError, match=r"^--plugin .*gone.py: cannot be read: No such file or directory$"):
        load_plugin(tmp_path / "gone.py")
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory$"):
        load_plugin(tmp_path)


def test_a_file_without_public_callables_is_rejected(write):
    with pytest.raises(UsageError, match=r"my_models\.py: defines no public function or class"):
        load_plugin(write("from torch.nn import Linear\nWIDTH = 3\ndef _hidden(classes): ...\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def f(classes):\n    return classes\n", "plugin:f of .*my_models.py returns a int, not a torch.nn.Module"),
        ("from torch import nn\nclass f(nn.Module): ...\n", "plugin:f cannot be built for 7 classes: .*TypeError: "),
        ("def f(classes):\n    x = 1\n    return y\n", r"for 7 classes: .*my_models.py, line 3: NameError: name 'y'"),
    ],
)
def test_callables_that_return_no_model_are_rejected(write, content, message):
    load_plugin(write(content))
    with pytest.raises(UsageError, match=message):
        build_classifier("plugin:f", 7)


def test_the_fingerprint_names_file_and_content(write):
    assert plugin_fingerprint() is None
    path = write(GOOD)
    load_plugin(path)
    assert plugin_fingerprint() == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_file_is_executed_once_and_again_after_a_change(write, tmp_path):
    counting = f"open({str(tmp_path / 'count')!r}, 'a').write('x')\ndef f(classes): ...\n"
    load_plugin(write(counting))
    load_plugin(write(counting))
    assert (tmp_path / "count").read_text() == "x"
    load_plugin(write(counting.replace("def f", "def g")))
    assert (tmp_path / "count").read_text() == "xx"
    with pytest.raises(RecipeError, match="has no model 'f'"):
        build_classifier("plugin:f", 7)


def test_two_files_may_be_loaded_unless_their_names_clash(write):
    load_plugin(write("from torch import nn\ndef one(classes): return nn.Linear(1, classes)\n"))
    load_plugin(write("from torch import nn\ndef two(classes): return nn.Linear(2, classes)\n", "others.py"))
    assert [build_classifier(f"plugin:{name}", 7).in_features for name in ("one", "two")] == [1, 2]
    assert len(plugin_fingerprint()) == 2
    clashing = write("def three(classes): ...\ndef one(classes): ...\n", "third.py")
    with pytest.raises(UsageError, match=r"third.py: plugin:one is already a model of .*my_models.py"):
        load_plugin(clashing)
    assert len(plugin_fingerprint()) == 2


def test_a_failing_forward_is_reported_with_its_line(write):
    """The image size is not blamed, since it may be unrelated."""
    load_plugin(
        write("""
            from torch import nn

            class Odd(nn.Module):
                def __init__(self, classes):
                    super().__init__()

                def forward(self, images):
                    raise KeyError("gamma")
        """)
    )
    with pytest.raises(
        UsageError, match=r"^plugin:Odd fails on an image of 8 px: .*my_models\.py, line 9: KeyError: 'gamma'$"
    ):
        build_classifier("plugin:Odd", 7, 8)
