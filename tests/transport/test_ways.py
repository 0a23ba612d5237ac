"""Which way is opened."""

import subprocess
import sys


def test_no_way_is_imported_before_it_is_chosen():
    """Every worker, and the server, would read all their libraries' files for nothing."""
    libraries = "boto3", "proxystore", "redis", "requests"
    program = (
        "import sys, fl.client.task, fl.server.federation; "
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
