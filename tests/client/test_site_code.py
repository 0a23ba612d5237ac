import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.client.site_code import SiteCodeError, identify, load


def test_loads_a_function(site_code):
    (site_code / "exp").mkdir()
    (site_code / "exp" / "data.py").write_text("def f():\n    return 41\n")
    assert load("exp/data.py", "f")() == 41


def test_a_changed_file_is_loaded_again(site_code):
    file = site_code / "data.py"
    file.write_text("def f():\n    return 1\n")
    first = load("data.py", "f")
    assert load("data.py", "f") is first
    file.write_text("def f():\n    return 2\n")
    assert load("data.py", "f")() == 2


def test_nothing_outside_the_folder(site_code, tmp_path):
    outside = tmp_path / "outside.py"
    outside.write_text("def f():\n    return 0\n")
    (site_code / "link.py").symlink_to(outside)
    (site_code / "folder").symlink_to(tmp_path)
    beside = tmp_path / "site_code_too"
    beside.mkdir()
    (beside / "outside.py").write_text("def f():\n    return 0\n")
    ways = ["../outside.py", "a/../../outside.py", str(outside), "link.py", "folder/outside.py"]
    for path in [*ways, "../site_code_too/outside.py"]:
        for use in (identify, lambda path: load(path, "f")):
            with pytest.raises(SiteCodeError, match="outside"):
                use(path)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "/", "a", "", "~", "\0"]) | st.text(), max_size=8))
def test_no_path_leads_out_of_the_folder(parts):
    with tempfile.TemporaryDirectory() as top, pytest.MonkeyPatch.context() as patch:
        folder = Path(top).resolve() / "site_code"
        (folder / "a").mkdir(parents=True)
        (folder.parent / "a").write_text("secret")
        patch.setenv("FL_SITE_CODE", str(folder))
        with pytest.raises(SiteCodeError):
            identify("/".join(parts))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from subprocess import run", "run"),
        ("from random import shuffle", "shuffle"),
        ("from numpy import savetxt", "savetxt"),
    ],
    ids=["run", "shuffle", "savetxt"],
)
def test_what_a_file_imports_for_itself_is_not_a_servers_to_call(site_code, line, name):
    (site_code / "data.py").write_text(f"{line}\nfrom os.path import join\n__all__ = ['join']\n")
    with pytest.raises(SiteCodeError, match=f"no function or class '{name}'"):
        load("data.py", name)
    assert load("data.py", "join")("a", "b") == "a/b"


@pytest.mark.parametrize("made", ["partial(int, '41')", "lru_cache(lambda: 41)", "Loader().load"])
def test_what_a_file_makes_is_a_servers_to_call(site_code, made):
    source = "class Loader:\n    def load(self):\n        return 41\n"
    imports = "from functools import lru_cache, partial\n"
    (site_code / "data.py").write_text(f"{imports}{source}f = {made}\n")
    assert load("data.py", "f")() == 41


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("f = 3\n", "no function or class 'f'"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_what_does_not_load_says_why(site_code, text, expected):
    (site_code / "data.py").write_text(text)
    with pytest.raises(SiteCodeError, match=expected):
        load("data.py", "f")


def test_a_missing_file_names_the_folder(site_code):
    with pytest.raises(SiteCodeError, match="not in this site's code folder"):
        load("none.py", "f")
