"""Who holds a site while plays change it."""

import os
import subprocess
import sys

from tests.conftest import BIN, TOP

CLIENT = "11111111-2222-4333-8444-555555555555"


def test_of_two_playbooks_in_one_call_each_takes_the_site(tmp_path):
    """The first gives it back at its end, so the second must not believe that it still has it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "sites.ini").write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/site\n[all:vars]\n"
        f"ansible_python_interpreter={sys.executable}\nfl_client_id={CLIENT}\n"
        f"fl_client_secret=none\n"
    )
    play = "playbooks/credentials.yml"
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", tmp_path / "sites.ini", play, play],
        cwd=TOP,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("TASK [lock : Take the site, or read who has it]") == 2
    assert not (tmp_path / "site" / "lock").exists()
